//! A piece of work that can be measured: buffers in several copies, whoever works on them, and the comparison of results with float64.

use anyhow::Result;
use prime_kernels::fill;
use prime_kernels::testing::roundoff;
use prime_runtime::{DType, Device, Tensor, bf16};
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::baselines::Baselines;
use crate::shapes::Scale;

/// What all work of a run is made for.
pub struct Setup {
    /// Where it runs.
    pub device: Device,
    /// How large it is.
    pub scale: Scale,
    /// Bytes of the last cache between memory and whatever computes.
    pub cache: usize,
    /// What is measured beside ours.
    pub baselines: Baselines,
}

/// So many times the last cache do the copies of a case's buffers take together, so that a call finds nothing of the one before it there.
const CACHES: usize = 3;

/// The most copies, whatever they add up to.
const MOST_SETS: usize = 256;

impl Setup {
    /// Copies of buffers that take so many bytes.
    pub fn sets(&self, bytes: f64) -> usize {
        ((CACHES * self.cache) as f64 / bytes.max(1.0)).ceil().clamp(2.0, MOST_SETS as f64) as usize
    }

    /// Uniform numbers between -1 and 1, times `scale`, rounded to the dtype.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn uniform(&self, dtype: DType, dims: &[usize], seed: u64, scale: f32) -> Result<Tensor> {
        let count: usize = dims.iter().product();
        let at = |i: usize| value(seed, i) * scale;
        let host = match dtype {
            DType::BF16 => {
                let values: Vec<bf16> =
                    (0..count).into_par_iter().map(|i| bf16::from_f32(at(i))).collect();
                Tensor::from_slice(&values, dims)?
            }
            _ => {
                let values: Vec<f32> = (0..count).into_par_iter().map(at).collect();
                Tensor::from_slice(&values, dims)?
            }
        };
        self.place(host)
    }

    /// These numbers in float32.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn floats(&self, values: &[f32], dims: &[usize]) -> Result<Tensor> {
        self.place(Tensor::from_slice(values, dims)?)
    }

    /// Indices.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn indices(&self, values: &[u32], dims: &[usize]) -> Result<Tensor> {
        self.place(Tensor::from_slice(values, dims)?)
    }

    /// Zeros.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn zeros(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        Ok(Tensor::zeros(self.device, dtype, dims)?)
    }

    fn place(&self, host: Tensor) -> Result<Tensor> {
        Ok(if self.device == Device::Cpu { host } else { host.to(self.device)? })
    }

    /// A set of buffers, and copies of it as many as a call's bytes ask for.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn copies(&self, set: Vec<Tensor>, bytes: f64) -> Result<Vec<Vec<Tensor>>> {
        let count = self.sets(bytes);
        let mut sets = Vec::with_capacity(count);
        for _ in 1..count {
            let copy = |tensor: &Tensor| -> Result<Tensor> {
                let mut to = Tensor::zeros(self.device, tensor.dtype(), tensor.dims())?;
                to.view_mut().copy_from(tensor.view())?;
                Ok(to)
            };
            sets.push(set.iter().map(copy).collect::<Result<Vec<_>>>()?);
        }
        sets.insert(0, set);
        Ok(sets)
    }
}

/// A number from -1 to 1 that looks drawn by chance.
pub fn value(seed: u64, index: usize) -> f32 {
    let mut bits = (index as u64 ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

type Run = Box<dyn FnMut(&mut [Tensor], usize) -> Result<()>>;
type Check = Box<dyn Fn(&[Tensor]) -> Result<Comparison>>;

/// One way to do the work.
pub struct Contestant {
    pub(crate) name: String,
    pub(crate) ours: bool,
    pub(crate) run: Run,
}

/// Work that is ready.
pub struct Work {
    pub(crate) sets: Vec<Vec<Tensor>>,
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) absent: Vec<(String, String)>,
    pub(crate) about: Map<String, Value>,
    blank: Vec<(usize, f32)>,
    check: Check,
}

impl Work {
    /// Work on copies of buffers, whose result in the first copy `check` compares.
    pub fn new(
        sets: Vec<Vec<Tensor>>,
        check: impl Fn(&[Tensor]) -> Result<Comparison> + 'static,
    ) -> Work {
        Work {
            sets,
            contestants: Vec::new(),
            absent: Vec::new(),
            about: Map::new(),
            blank: Vec::new(),
            check: Box::new(check),
        }
    }

    /// Fills a buffer with a value before each checked run: NaN in what is overwritten, 0 in what is added to.
    #[must_use]
    pub fn blank(mut self, buffer: usize, value: f32) -> Work {
        self.blank.push((buffer, value));
        self
    }

    /// Somebody of this project, who does the work on a set of buffers, given its number.
    #[must_use]
    pub fn ours(
        mut self,
        name: &str,
        run: impl FnMut(&mut [Tensor], usize) -> Result<()> + 'static,
    ) -> Work {
        self.contestants.push(Contestant { name: name.to_owned(), ours: true, run: Box::new(run) });
        self
    }

    /// Somebody else.
    #[must_use]
    pub fn other(
        mut self,
        name: &str,
        run: impl FnMut(&mut [Tensor], usize) -> Result<()> + 'static,
    ) -> Work {
        self.contestants.push(Contestant {
            name: name.to_owned(),
            ours: false,
            run: Box::new(run),
        });
        self
    }

    /// Somebody who cannot take part, and why.
    pub fn absent(&mut self, name: &str, why: String) {
        self.absent.push((name.to_owned(), why));
    }

    /// Runs a contestant on a set.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&mut self, contestant: usize, set: usize) -> Result<()> {
        let number = set % self.sets.len().max(1);
        let buffers = self.sets.get_mut(number).map_or(&mut [][..], |set| &mut set[..]);
        (self.contestants[contestant].run)(buffers, number)
    }

    /// Runs a contestant on blank outputs and compares what it leaves.
    ///
    /// # Errors
    /// When it fails.
    pub fn check(&mut self, contestant: usize) -> Result<Comparison> {
        for &(buffer, value) in &self.blank {
            fill::forward(self.sets[0][buffer].view_mut(), value)?;
        }
        self.run(contestant, 0)?;
        (self.check)(self.sets.first().map_or(&[], |set| &set[..]))
    }
}

/// The worst of the compared elements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparison {
    /// How many were compared.
    pub compared: usize,
    /// Greatest error in parts of what is allowed.
    pub worst: f64,
}

impl Comparison {
    /// Compares an element.
    pub fn add(&mut self, actual: f64, exact: f64, allowed: f64) {
        self.compared += 1;
        let error = if actual == exact { 0.0 } else { (actual - exact).abs() / allowed };
        // A NaN is worse than anything.
        if error > self.worst || error.is_nan() {
            self.worst = if error.is_nan() { f64::INFINITY } else { error };
        }
    }

    /// Compares as many elements.
    pub fn all(&mut self, actual: &[f64], exact: &[f64], allowed: impl Fn(usize) -> f64) {
        if actual.len() != exact.len() {
            self.worst = f64::INFINITY;
        }
        for (i, (&actual, &exact)) in actual.iter().zip(exact).enumerate() {
            self.add(actual, exact, allowed(i));
        }
    }
}

/// The unit roundoff of float32, in which everything is summed.
pub const UNIT: f64 = 1.0 / 16_777_216.0;

/// The error of a sum of so many products, in parts of the sum of their magnitudes. On tensor cores: they take 16 products and the sum so far at
/// once, align them to the largest, and round what they have added, 18 errors of at most two roundoffs each. That is more than a chain of as
/// many fused multiply-adds errs by, or one of pairs that are rounded before they are added.
pub fn sum_error(terms: usize) -> f64 {
    (36.0 * terms.div_ceil(16) as f64 + 2.0) * UNIT
}

/// The roundoff of a factor that is rounded to the dtype on its way into a product; float32 is not rounded.
pub fn factor(dtype: DType) -> f64 {
    if dtype == DType::BF16 { roundoff(dtype) } else { 0.0 }
}

/// A row of a tensor.
pub fn row(tensor: &Tensor, index: usize) -> Vec<f64> {
    floats(&tensor.view().rows(index..index + 1).to_f32_vec())
}

/// A column of a matrix.
pub fn column(tensor: &Tensor, index: usize) -> Vec<f64> {
    floats(&tensor.view().columns(index..index + 1).to_f32_vec())
}

/// All of a tensor.
pub fn all(tensor: &Tensor) -> Vec<f64> {
    floats(&tensor.view().to_f32_vec())
}

fn floats(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Some indices below a bound, the first and the last among them.
pub fn samples(bound: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(bound);
    (0..count).map(move |i| if count < 2 { 0 } else { i * (bound - 1) / (count - 1) })
}

/// A sum of products.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The sum of their magnitudes.
pub fn magnitude(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// Compares a stored sum of products with float64.
pub fn compare_sum(
    comparison: &mut Comparison,
    actual: f64,
    out: DType,
    left: &[f64],
    right: &[f64],
) {
    let exact = dot(left, right);
    let error = sum_error(left.len()) * magnitude(left, right);
    comparison.add(actual, exact, error + roundoff(out) * (exact.abs() + error));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        Setup {
            device: Device::Cpu,
            scale: Scale::Tiny,
            cache: 1 << 20,
            baselines: Baselines::none("it is a test"),
        }
    }

    #[test]
    fn copies_exceed_the_cache_and_hold_the_same_numbers() {
        let setup = setup();
        assert_eq!((setup.sets(1e6), setup.sets(1e9), setup.sets(1.0)), (4, 2, MOST_SETS));
        let set = vec![setup.uniform(DType::BF16, &[8, 8], 3, 1.0).unwrap()];
        let copies = setup.copies(set, 1e6).unwrap();
        assert_eq!(copies.len(), 4);
        assert!(copies.iter().all(|copy| all(&copy[0]) == all(&copies[0][0])));
        assert!(copies[0][0].view().address() != copies[1][0].view().address());
    }

    #[test]
    fn a_check_finds_what_was_not_computed() {
        let setup = setup();
        let make = |writes: bool| {
            let sets = vec![vec![setup.zeros(DType::F32, &[4]).unwrap()]];
            Work::new(sets, |set| {
                let mut comparison = Comparison::default();
                comparison.all(&all(&set[0]), &[1.0; 4], |_| 1e-6);
                Ok(comparison)
            })
            .blank(0, f32::NAN)
            .ours("prime", move |set, _| {
                if writes {
                    fill::forward(set[0].view_mut(), 1.0)?;
                }
                Ok(())
            })
        };
        let right = make(true).check(0).unwrap();
        assert_eq!((right.compared, right.worst), (4, 0.0));
        assert_eq!(make(false).check(0).unwrap().worst, f64::INFINITY);
    }

    #[test]
    fn drawn_values_spread_over_the_whole_range() {
        let values: Vec<f32> = (0..10_000).map(|i| value(1, i)).collect();
        assert!(values.iter().all(|x| (-1.0..=1.0).contains(x)));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02 && values.iter().any(|&x| x > 0.99));
        assert_ne!(value(1, 5), value(2, 5));
    }
}
