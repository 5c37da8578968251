//! The command `lsfs`, run as its users run it.

mod bad_input;
mod bench;
mod beside;
mod cat;
mod clerk;
mod damage;
mod data;
mod dump;
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
