//! What a step says of itself: named numbers, in the order in which they were set.

use serde_json::{Map, Value};

/// The metrics of one step of one stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    stage: &'static str,
    step: u64,
    values: Vec<(String, f64)>,
}

impl Metrics {
    /// An empty set for a step, counted from 1, of a stage: `sft`, `prm_warmup`, `critic_warmup`, `prime`, `outcome_only` or `eval`.
    pub fn new(stage: &'static str, step: u64) -> Self {
        Metrics { stage, step, values: Vec::new() }
    }

    /// Renames the stage: the outcome-only run is the same loop.
    pub fn in_stage(mut self, stage: &'static str) -> Self {
        self.stage = stage;
        self
    }

    /// Adds a number.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.values.push((name.into(), value));
    }

    /// A number by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(key, _)| key == name).map(|&(_, value)| value)
    }

    /// The stage.
    pub fn stage(&self) -> &'static str {
        self.stage
    }

    /// The step.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// All numbers, in order.
    pub fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// One line of `metrics.jsonl`, without its end. A number that is not finite becomes null: JSON has no name for it.
    pub fn to_json(&self) -> String {
        let mut object = Map::new();
        object.insert("stage".to_string(), self.stage.into());
        object.insert("step".to_string(), self.step.into());
        for (name, value) in self.values() {
            object.insert(
                name.to_string(),
                serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number),
            );
        }
        Value::Object(object).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_the_order_and_writes_null_for_what_json_cannot_say() {
        let mut metrics = Metrics::new("prime", 3);
        metrics.set("reward/accuracy", 0.5);
        metrics.set("policy/loss", f64::NAN);
        let line = r#"{"stage":"prime","step":3,"reward/accuracy":0.5,"policy/loss":null}"#;
        assert_eq!(metrics.to_json(), line);
        assert_eq!(metrics.get("reward/accuracy"), Some(0.5));
    }
}
