//! The command `kvs`, run as its users run it.

mod commands;
mod faults;
mod full_disk;
mod kills;
mod processes;
mod support;
