//! The command `lsfs`, run as its users run it.

mod bad_input;
mod beside;
mod cat;
mod damage;
mod data;
mod follow;
mod inspect;
mod interrupt;
mod kill;
mod mapped;
mod record;
mod repair;
mod state;
mod support;
mod truncate;
