//! Scenarios: clients talk to real engines over a network of bytes; the bridge is scripted, the clock is ours.

mod chance;
mod closing;
mod connecting;
mod limits;
mod presence;
mod rooms;
mod world;
