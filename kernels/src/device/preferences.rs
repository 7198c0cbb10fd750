//! What was chosen among several ways to do the same thing.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// The variant that is preferred for each problem, in this process.
pub(crate) struct Preferences<Problem, Variant> {
    /// Quick to ask while nothing is preferred: launchers ask for every call.
    any: AtomicBool,
    table: RwLock<HashMap<Problem, Variant>>,
}

impl<Problem, Variant> Default for Preferences<Problem, Variant> {
    fn default() -> Self {
        Preferences { any: AtomicBool::new(false), table: RwLock::default() }
    }
}

impl<Problem: Eq + Hash, Variant: Clone> Preferences<Problem, Variant> {
    /// Prefers a variant for a problem from now on; `None` prefers nothing again.
    pub(crate) fn set(&self, problem: Problem, variant: Option<Variant>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        match variant {
            Some(variant) => table.insert(problem, variant),
            None => table.remove(&problem),
        };
        self.any.store(!table.is_empty(), Ordering::Release);
    }

    /// The variant that was preferred last for a problem.
    pub(crate) fn get(&self, problem: &Problem) -> Option<Variant> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(problem).cloned()
    }
}
