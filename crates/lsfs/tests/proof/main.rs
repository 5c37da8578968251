//! The proof kit: what stands behind docs/durability.md and docs/format.md, and known losers that show that it would
//! see. What each part does, and why so, is in docs/design/0010-proof-kit.md.

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod crash_data_stream;
mod crash_final_data;
mod crash_segment_set;
mod crash_stream;
mod damage;
mod faults;
mod fuzz;
mod fuzz_segments;
mod golden;
mod mutants;
mod segment_set_damage;
mod segment_set_faults;
mod segment_set_list;
