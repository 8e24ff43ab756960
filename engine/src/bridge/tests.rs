//! Scenarios over a bridge, the local bus and the store in memory, with faults and a virtual clock.

mod away;
mod cut_off;
mod faults;
mod history;
mod pace;
mod publish;
mod restart;
mod strict;
mod world;
