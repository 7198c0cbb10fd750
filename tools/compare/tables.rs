//! What is compared: a row is a line of settings.

/// A comparison: every row in every variant, each with the same start, seeds and rollouts.
pub struct Table {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What its rows are.
    pub what: &'static str,
    /// Settings of every row.
    pub settings: &'static [&'static str],
    /// What each row is run with, the first being the one that is compared with the others.
    pub variants: &'static [Variant],
    /// The rows. In a table of one variant, the others are compared with the first.
    pub rows: &'static [Row],
}

/// Whether process rewards join.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// PRIME.
    Process,
    /// The same without its process rewards.
    OutcomeOnly,
}

impl Variant {
    /// As it stands in the table and in the names of folders.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Process => "process rewards",
            Variant::OutcomeOnly => "outcomes alone",
        }
    }
}

/// One line of a table.
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Its settings. `{warmup}` is the number of batches that warm the PRM up.
    pub settings: &'static [&'static str],
    /// Variants that it does not have.
    pub without: &'static [Variant],
    /// Whether it warms a critic up, also without a PRM: those batches count as rollouts in place of steps.
    pub has_critic: bool,
}

const fn row(name: &'static str, settings: &'static [&'static str]) -> Row {
    Row { name, settings, without: &[], has_critic: false }
}

/// All tables.
pub const TABLES: [Table; 3] = [
    Table {
        name: "estimators",
        what: "estimator",
        settings: &[],
        variants: &[Variant::Process, Variant::OutcomeOnly],
        rows: &[
            row("rloo", &["advantage.estimator=rloo"]),
            row("reinforce", &["advantage.estimator=reinforce"]),
            row("grpo", &["advantage.estimator=grpo"]),
            row("dr-grpo", &["advantage.estimator=dr-grpo"]),
            row("reinforce++", &["advantage.estimator=reinforce++"]),
            Row {
                has_critic: true,
                ..row("gae", &["advantage.estimator=gae", "critic.warmup_batches={warmup}"])
            },
            Row {
                without: &[Variant::OutcomeOnly],
                ..row("prm-value", &["advantage.estimator=prm-value"])
            },
        ],
    },
    Table {
        name: "policy-losses",
        what: "policy loss",
        // With one update a batch every ratio is 1, and all losses are one.
        settings: &["policy.minibatches=2", "policy.epochs=2"],
        variants: &[Variant::Process],
        rows: &[
            row("ppo", &[]),
            row("ppo, dual clip", &["policy.dual_clip=3"]),
            row("gspo", &["policy.loss=gspo", "policy.clip_low=3e-4", "policy.clip_high=4e-4"]),
            // Published without a lower bound.
            row("cispo", &["policy.loss=cispo", "policy.clip_low=1"]),
            row("clip-cov", &["policy.loss=clip-cov", "policy.cov_share=0.01"]),
            row("kl-cov", &["policy.loss=kl-cov", "policy.cov_share=0.01"]),
            row(
                "dapo",
                &[
                    "policy.clip_high=0.28",
                    "policy.aggregation=token-mean",
                    "policy.mask_truncated=true",
                    "advantage.overlong_buffer=16",
                    "advantage.overlong_factor=0.5",
                ],
            ),
            row("ppo, KL in the loss", &["policy.kl_coef=0.01"]),
        ],
    },
    Table {
        name: "prm-losses",
        what: "PRM loss",
        settings: &[],
        variants: &[Variant::Process],
        rows: &[
            row("ce", &["prm.loss=ce"]),
            row("dpo", &["prm.loss=dpo"]),
            row("bon_acc", &["prm.loss=bon_acc"]),
            row("bon_rm", &["prm.loss=bon_rm"]),
            row("dpo-pairs", &["prm.loss=dpo-pairs"]),
            row("nca", &["prm.loss=nca"]),
            row("kto", &["prm.loss=kto"]),
            row("prefix-value", &["prm.loss=prefix-value"]),
        ],
    },
];

#[cfg(test)]
mod tests {
    use prime::config::Config;

    use super::*;

    #[test]
    fn the_settings_of_every_row_are_a_configuration_of_its_own() {
        for table in &TABLES {
            let mut seen = Vec::new();
            for row in table.rows {
                let settings: Vec<String> = [table.settings, row.settings]
                    .concat()
                    .iter()
                    .map(|text| text.replace("{warmup}", "3"))
                    .collect();
                let config = Config::load(&[], &settings)
                    .unwrap_or_else(|error| panic!("{}, {}: {error:#}", table.name, row.name));
                assert!(!seen.contains(&config), "{}: {} is another row", table.name, row.name);
                seen.push(config);
            }
        }
    }
}
