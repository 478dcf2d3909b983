//! Requests that wait: for objects (`waitlist`), for room (`create_queue`), and how the latter are
//! served (`serving`). How room is made, and what objects are, is not known here.

mod create_queue;
mod serving;
mod waitlist;

pub use create_queue::{CreateQueue, Creation, QueuedCreate, Turn};
pub use waitlist::{Place, Waiter, WaiterId, Waitlist, Want};
