//! The arrows of a PRIME step, each one plain function over one ragged batch:
//!
//! [`batch`] the batch; [`rollout`] samples from the policy; [`grade`] their outcomes; [`filter`] which prompts teach
//! something; [`prm_update`] the PRM's loss, of which [`prm_targets`] names the kinds; [`steps`] where a response's steps end; [`implicit_reward`]
//! process rewards; [`advantage`] leave-one-out returns and advantages; [`critic_update`] a critic's values; [`policy_loss`] the policy's losses
//! by name; [`policy_update`] its update; [`aggregate`] the weight of a token in the
//! loss; [`accuracy`] how well the PRM tells right from wrong.
//!
//! The algorithm was published three times, and the three differ; [`Form`] names them. Sources: arXiv 2502.01456
//! (the paper), the PRIME-RL/PRIME repository (the authors' code), and the `prime` recipe of verl.

/// An enum whose variants have names that people write in configuration files and on the command line.
macro_rules! named {
    (
        $(#[$doc:meta])*
        $name:ident, $what:literal {
            $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(into = "&'static str", try_from = "String")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The name people write.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)+
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = anyhow::Error;

            fn from_str(text: &str) -> anyhow::Result<Self> {
                match text {
                    $($text => Ok($name::$variant),)+
                    _ => anyhow::bail!(
                        "unknown {} `{text}`: it is one of {}",
                        $what,
                        [$($text),+].join(", ")
                    ),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl From<$name> for &'static str {
            fn from(value: $name) -> Self {
                value.name()
            }
        }

        impl TryFrom<String> for $name {
            type Error = anyhow::Error;

            fn try_from(text: String) -> anyhow::Result<Self> {
                text.parse()
            }
        }
    };
}

pub(crate) use named;

use prime_model::Upload;
use prime_runtime::{DType, Tensor};

pub mod accuracy;
pub mod advantage;
pub mod aggregate;
pub mod batch;
pub mod critic_update;
pub mod curriculum;
pub mod filter;
pub mod grade;
pub mod implicit_reward;
pub mod policy_loss;
pub mod policy_update;
pub mod prm_targets;
pub mod prm_update;
pub mod rollout;
pub mod steps;

pub use advantage::Estimator;
pub use aggregate::Aggregation;
pub use batch::{Group, Response, Rollouts};
pub use implicit_reward::{Granularity, ProcessNorm};
pub use policy_loss::{KlKind, PolicyLoss};
pub use prm_targets::PrmLoss;

named! {
    /// Which published form of the algorithm. They differ in the process reward ([`implicit_reward`]), in the
    /// leave-one-out baseline and in whitening ([`advantage`]).
    Form, "form" {
        /// Equations 3 and 5 of arXiv 2502.01456.
        Paper = "paper",
        /// The PRIME-RL/PRIME repository.
        PrimeRepo = "prime-repo",
        /// The `prime` recipe of verl.
        Verl = "verl",
    }
}

/// out\[t\] = x\[t\] + discount * out\[t + 1\] within each response of a batch, on its device.
fn reverse_scan(batch: &Rollouts, x: &[f32], discount: f64) -> anyhow::Result<Vec<f32>> {
    let device = batch.device;
    let mut out = Tensor::zeros(device, DType::F32, &[x.len()])?;
    let mut columns = Upload::new(device, [x.len()])?;
    let mut cu_seqlens = Upload::new(device, [batch.cu_seqlens.len()])?;
    let ([x], [cu_seqlens]) = (columns.place([x])?, cu_seqlens.place([&batch.cu_seqlens])?);
    prime_kernels::scan::forward(out.view_mut(), x, cu_seqlens, discount as f32)?;
    Ok(out.view().to_vec()?)
}

/// Cuts `responses` into `count` consecutive minibatches whose sizes differ by at most one; fewer where there are not
/// as many responses.
pub(crate) fn minibatches(
    responses: usize,
    count: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = count.min(responses);
    (0..count).map(move |i| i * responses / count..(i + 1) * responses / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike_and_an_unknown_one_lists_the_known() {
        for &form in Form::ALL {
            assert_eq!(form.to_string().parse::<Form>().unwrap(), form);
            let json = serde_json::to_string(&form).unwrap();
            assert_eq!(serde_json::from_str::<Form>(&json).unwrap(), form);
        }
        let message = "ppo".parse::<Form>().unwrap_err().to_string();
        assert_eq!(message, "unknown form `ppo`: it is one of paper, prime-repo, verl");
        assert!(serde_json::from_str::<Form>("\"ppo\"").unwrap_err().to_string().contains("paper"));
    }
}
