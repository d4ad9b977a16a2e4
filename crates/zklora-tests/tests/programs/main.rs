//! What takes two of the programs, or all three.

mod audit;
mod bad_input;
mod command_line;
mod delivery;
mod documentation;
mod end_to_end;
mod ending;
mod exact;
mod fetch;
mod modes;
mod redact;
mod rooms;
mod secrets;
mod using;
