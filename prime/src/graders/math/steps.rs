//! What a comparison may cost, counted in steps: the same on every machine, unlike time.

/// The steps that are left. A step is a bounded piece of work: a character read, a node parsed, an operation on numbers.
pub(super) struct Steps {
    left: u32,
}

/// Steps of one comparison. The answers of MATH-500 and GSM8K take a few thousand at most; these take about 2 ms.
pub(super) const BUDGET: u32 = 200_000;

impl Steps {
    /// A full budget.
    pub(super) fn new() -> Self {
        Steps { left: BUDGET }
    }

    /// Spends steps; `None` once they are used up, and from then on.
    pub(super) fn take(&mut self, steps: usize) -> Option<()> {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Some(())
            }
            None => {
                self.left = 0;
                None
            }
        }
    }

    /// How many were spent.
    #[cfg(test)]
    pub(super) fn used(&self) -> u32 {
        BUDGET - self.left
    }

    /// Whether the budget ran out.
    pub(super) fn exhausted(&self) -> bool {
        self.left == 0
    }
}
