//! The command `kvs`, run as its users run it.

mod commands;
mod processes;
mod support;
