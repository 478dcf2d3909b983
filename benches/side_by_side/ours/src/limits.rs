//! What the machine allows whoever does the same job: the works of the contender "limit".

use crate::echo::Echo;
use crate::{Contender, Failure, Question, Samples, memory};

/// The limits. Remembers the echo programs that it has started.
#[derive(Default)]
pub struct Limits {
    sleeping: Option<Echo>,
    polling: Option<Echo>,
}

impl Contender for Limits {
    fn work(&mut self, question: &Question) -> Result<Samples, Failure> {
        let Question { work, count, size } = question;
        let (count, size) = (*count, *size);
        match work.as_str() {
            "echo_sleeping" => started(&mut self.sleeping, "sleeping")?.round_trips(count),
            // One that polls takes a whole processor: not for longer than it is asked.
            "echo_polling" => {
                let samples = started(&mut self.polling, "polling")?.round_trips(count);
                self.polling = None;
                samples
            }
            "memcpy_1" => memory::warm(count, size, 1),
            "memcpy_2" => memory::warm(count, size, 2),
            "memcpy_4" => memory::warm(count, size, 4),
            "fresh_1" => memory::fresh(count, size, 1, false),
            "fresh_2" => memory::fresh(count, size, 2, false),
            "fresh_populated_1" => memory::fresh(count, size, 1, true),
            "fresh_populated_2" => memory::fresh(count, size, 2, true),
            _ => Err(format!("{work} is not known here").into()),
        }
    }
}

fn started<'a>(echo: &'a mut Option<Echo>, waiting: &str) -> Result<&'a mut Echo, Failure> {
    if echo.is_none() {
        *echo = Some(Echo::start(waiting)?);
    }
    echo.as_mut().ok_or_else(|| "just started".into())
}
