//! The last steps of a run in readable lines, for when the next one fails.

use super::{Simulation, chaos};

impl Simulation {
    /// The seed's character, who waits, and the last steps.
    pub(super) fn trace_text(&self) -> String {
        let mut text = format!("{:?}\n", self.chaos);
        for waiting in &self.model.waiting {
            text += &format!("       waits: {}\n", readable(waiting));
        }
        for create in &self.model.queue {
            text += &format!("       waits: {}\n", readable(create));
        }
        for (number, step, effects) in &self.trace {
            text += &format!("{number:>6} {}\n", readable(step));
            for effect in effects {
                text += &format!("         -> {}\n", readable(effect));
            }
        }
        text
    }
}

/// Debug text with short names (`o7`) for the objects of a simulation and without their bytes.
fn readable(value: &impl std::fmt::Debug) -> String {
    let mut text = format!("{value:?}");
    for number in 0..=u8::MAX {
        let id = chaos::name(number);
        text = text.replace(&format!("{id:?}"), &format!("o{number}"));
    }
    // Lists of bytes are the only lists whose first element is a number.
    let mut short = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find('[') {
        let len = rest[start..].find(']').map_or(0, |end| end + 1);
        let list = &rest[start..start + len];
        short.push_str(&rest[..start]);
        if list[1..].starts_with(|first: char| first.is_ascii_digit()) {
            short.push_str(&format!("[{} bytes]", list.split(',').count()));
            rest = &rest[start + len..];
        } else {
            short.push('[');
            rest = &rest[start + 1..];
        }
    }
    short + rest
}
