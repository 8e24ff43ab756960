//! Which tokens count, and a corpus of hostile ones that must not.

use super::*;
