//! What checks and benchmarks share: random tensors, and a comparison that reports the worst element.

use prime_runtime::random::{Generator, Stream};
use prime_runtime::{DType, Device, Element, Tensor, View, ViewMut, bf16};

/// One random case of an operation on a device against its oracle; the message says what disagreed.
pub type Check = fn(Device, u64) -> Result<(), String>;

/// Random cases of each operation on each device.
#[cfg(test)]
const CASES: u64 = 200;

/// Runs the random cases of an operation on a device.
///
/// # Panics
/// With the seed and what disagreed.
#[cfg(test)]
pub(crate) fn assert_cases(device: Device, check: Check) {
    for seed in 0..CASES {
        if let Err(message) = check(device, seed) {
            panic!("on {device}, seed {seed}: {message}");
        }
    }
}

/// The unit roundoff of a storage type: half the distance from 1 to the next value.
pub fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::BF16 => 2f64.powi(-8),
        other => unreachable!("no operation computes in {other}"),
    }
}

/// The generator of one case of a check.
pub fn generator(seed: u64) -> Generator {
    Generator::new(seed, Stream::Test, 0)
}

/// The generator of one case of a check, and the device on which its tensors lie.
pub struct Case {
    random: Generator,
    device: Device,
}

/// The case of a seed on a device.
pub fn case(device: Device, seed: u64) -> Case {
    Case { random: generator(seed), device }
}

impl std::ops::Deref for Case {
    type Target = Generator;
    fn deref(&self) -> &Generator {
        &self.random
    }
}

impl std::ops::DerefMut for Case {
    fn deref_mut(&mut self) -> &mut Generator {
        &mut self.random
    }
}

impl Case {
    /// Where the case's tensors lie.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Normal numbers times `scale`, rounded to the dtype.
    pub fn tensor(&mut self, dtype: DType, dims: &[usize], scale: f32) -> Tensor {
        let host = normal(&mut self.random, dtype, dims, scale);
        self.place(host)
    }

    /// These values, rounded to the dtype.
    pub fn of(&self, values: &[f32], dtype: DType, dims: &[usize]) -> Tensor {
        self.place(from_f32(values, dtype, dims))
    }

    /// Indices, or any other u32 numbers, in one dimension.
    pub fn indices(&self, values: &[u32]) -> Tensor {
        self.place(Tensor::from_slice(values, &[values.len()]).expect("test tensors are small"))
    }

    /// What an operation is to overwrite: NaN, which the emulated device counts as never written.
    pub fn blank(&self, dtype: DType, dims: &[usize]) -> Tensor {
        let nan = vec![f32::NAN; dims.iter().product()];
        let mut tensor = self.place(from_f32(&nan, dtype, dims));
        prime_runtime::emulated::forget(tensor.view_mut());
        tensor
    }

    /// See [`Rows::normal`].
    pub fn rows(&mut self, dtype: DType, rows: usize, columns: usize, scale: f32) -> Rows {
        let mut host = Rows::normal(&mut self.random, dtype, rows, columns, scale);
        host.tensor = self.place(host.tensor);
        host
    }

    /// [`Case::rows`] that all begin at multiples of 16 bytes.
    pub fn aligned_rows(&mut self, dtype: DType, rows: usize, columns: usize, scale: f32) -> Rows {
        let lanes = 16 / dtype.size();
        let before = self.random.below(2) as usize * lanes;
        let after = (before + columns).next_multiple_of(lanes) - before - columns;
        let mut host = Rows::among(&mut self.random, dtype, rows, [before, columns, after], scale);
        host.tensor = self.place(host.tensor);
        host
    }

    /// A number of columns from 1 to `most`; half of the time a multiple of 8, with which rows without gaps between them start at multiples of
    /// 16 bytes.
    pub fn columns(&mut self, most: u32) -> usize {
        let columns = 1 + self.random.below(most) as usize;
        if self.random.below(2) == 0 { columns } else { columns.next_multiple_of(8) }
    }

    /// Rows and columns of a matrix, the columns as from [`Case::columns`]; now and then few rows of more elements than the threads that share a
    /// row on a device take at once.
    pub fn shape(&mut self, most_rows: u32, most_columns: u32) -> (usize, usize) {
        match self.random.below(24) {
            0 => (self.random.below(3) as usize, self.columns(20_000)),
            _ => (self.random.below(most_rows) as usize, self.columns(most_columns)),
        }
    }

    /// [`Case::rows`] that an operation is to overwrite: see [`Case::blank`]. What lies beside them is written.
    pub fn blank_rows(&mut self, dtype: DType, rows: usize, columns: usize) -> Rows {
        let mut host = Rows::normal(&mut self.random, dtype, rows, columns, 1.0);
        crate::fill::forward(host.view_mut(), f32::NAN).expect("test tensors are floats");
        host.tensor = self.place(host.tensor);
        prime_runtime::emulated::forget(host.view_mut());
        host
    }

    /// A host tensor on the case's device.
    pub fn place(&self, host: Tensor) -> Tensor {
        match self.device {
            Device::Cpu => host,
            device => host.to(device).expect("test tensors are small"),
        }
    }
}

/// float32 or bfloat16, by chance.
pub fn any_dtype(random: &mut Generator) -> DType {
    if random.below(2) == 0 { DType::F32 } else { DType::BF16 }
}

/// A host tensor of normal numbers times `scale`, rounded to the dtype.
pub fn normal(random: &mut Generator, dtype: DType, dims: &[usize], scale: f32) -> Tensor {
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| random.normal() * scale).collect();
    from_f32(&values, dtype, dims)
}

/// A host tensor of these values, rounded to the dtype.
pub fn from_f32(values: &[f32], dtype: DType, dims: &[usize]) -> Tensor {
    match dtype {
        DType::F32 => Tensor::from_slice(values, dims),
        DType::BF16 => {
            let rounded: Vec<bf16> =
                values.iter().map(|&x| <bf16 as Element>::from_f32(x)).collect();
            Tensor::from_slice(&rounded, dims)
        }
        other => unreachable!("no operation computes in {other}"),
    }
    .expect("test tensors are small")
}

/// A zeroed host tensor.
pub fn zeros(dtype: DType, dims: &[usize]) -> Tensor {
    Tensor::zeros(Device::Cpu, dtype, dims).expect("test tensors are small")
}

/// A tensor's elements in float64.
pub fn to_f64(tensor: &Tensor) -> Vec<f64> {
    tensor.view().to_f32_vec().into_iter().map(f64::from).collect()
}

/// Lengths of a pack of up to `most` sequences, some of them empty, as cumulative lengths.
pub fn cu_seqlens(random: &mut Generator, most: u32, longest: u32) -> Vec<u32> {
    let mut offsets = vec![0];
    for _ in 0..=random.below(most) {
        let length = if random.below(6) == 0 { 0 } else { 1 + random.below(longest) };
        offsets.push(offsets.last().expect("starts with 0") + length);
    }
    offsets
}

/// Compares element by element; `bound(i)` is the greatest error that the arithmetic of element `i` allows.
///
/// # Errors
/// A message with the element that exceeds its bound the most.
pub fn compare(
    what: &str,
    actual: &[f64],
    expected: &[f64],
    bound: impl Fn(usize) -> f64,
) -> Result<(), String> {
    if actual.len() != expected.len() {
        return Err(format!("{what}: {} values, expected {}", actual.len(), expected.len()));
    }
    let mut worst: Option<(f64, usize)> = None;
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let excess = if a == e { 0.0 } else { (a - e).abs() / bound(i) };
        let excess = if excess.is_nan() { f64::INFINITY } else { excess };
        if excess > 1.0 && worst.is_none_or(|(most, _)| excess > most) {
            worst = Some((excess, i));
        }
    }
    match worst {
        None => Ok(()),
        Some((excess, i)) => Err(format!(
            "{what}[{i}] is {:e}, expected {:e}: {excess:.1} times the error that its arithmetic allows",
            actual[i], expected[i]
        )),
    }
}

/// Checks a gradient of an oracle by central differences: `loss` is the oracle as a function of the flattened inputs.
///
/// # Errors
/// A message with the worst element.
pub fn check_gradient(
    what: &str,
    inputs: &[f64],
    gradient: &[f64],
    mut loss: impl FnMut(&[f64]) -> f64,
) -> Result<(), String> {
    // The cube root of the unit roundoff balances truncation (h^2) against cancellation (roundoff / h).
    const STEP: f64 = 6e-6;
    let mut point = inputs.to_vec();
    let numeric: Vec<f64> = (0..inputs.len())
        .map(|i| {
            let step = STEP * inputs[i].abs().max(1.0);
            point[i] = inputs[i] + step;
            let above = loss(&point);
            point[i] = inputs[i] - step;
            let below = loss(&point);
            point[i] = inputs[i];
            (above - below) / (2.0 * step)
        })
        .collect();
    let scale = numeric.iter().fold(1e-3f64, |most, x| most.max(x.abs()));
    compare(what, gradient, &numeric, |_| 1e-7 * scale)
}

/// The cases of `algorithm.json`: numbers of the programs that PRIME was published with. They are kept outside the
/// repository, in a folder `shared/vectors` beside it or wherever `PRIME_VECTORS` says; without them, prints a sentence and
/// gives none.
#[cfg(test)]
pub(crate) fn algorithm_vectors() -> Option<Vec<serde_json::Value>> {
    let folder = std::env::var_os("PRIME_VECTORS").map_or_else(
        || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors")),
        std::path::PathBuf::from,
    );
    let path = folder.join("algorithm.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: there is no {}", path.display());
        return None;
    };
    let mut whole: serde_json::Value = serde_json::from_str(&text).expect("the vectors are JSON");
    Some(serde_json::from_value(whole["cases"].take()).expect("`cases` is a list"))
}

/// A tensor whose rows may lie apart, as a part of a fused buffer does, between columns that no operation may write.
pub struct Rows {
    tensor: Tensor,
    before: usize,
    columns: usize,
    original: Vec<f64>,
}

impl Rows {
    /// `rows` rows of `columns` normal numbers times `scale`; half of the time with up to 8 other columns on either side.
    pub fn normal(
        random: &mut Generator,
        dtype: DType,
        rows: usize,
        columns: usize,
        scale: f32,
    ) -> Self {
        let [before, after] = match random.below(2) {
            0 => [0, 0],
            _ => [random.below(9) as usize, random.below(9) as usize],
        };
        Rows::among(random, dtype, rows, [before, columns, after], scale)
    }

    /// Normal numbers with so many others before and after each row.
    fn among(
        random: &mut Generator,
        dtype: DType,
        rows: usize,
        [before, columns, after]: [usize; 3],
        scale: f32,
    ) -> Self {
        let tensor = normal(random, dtype, &[rows, before + columns + after], scale);
        let original = to_f64(&tensor);
        Rows { tensor, before, columns, original }
    }

    /// A copy of the rows of a host tensor on a device, behind `before` other columns: with 1 they are not aligned.
    #[cfg(test)]
    pub(crate) fn behind(before: usize, host: &Tensor, device: Device) -> Self {
        let [rows, columns] = [host.dims()[0], host.dims()[1]];
        let mut tensor = zeros(host.dtype(), &[rows, before + columns]);
        let mut inside = tensor.view_mut().into_columns(before..before + columns);
        inside.copy_from(host.view()).expect("both are on the host");
        let original = to_f64(&tensor);
        let tensor = tensor.to(device).expect("test tensors are small");
        Rows { tensor, before, columns, original }
    }

    /// The rows, to read: `[rows, columns]`.
    pub fn view(&self) -> View<'_> {
        self.tensor.view().columns(self.before..self.before + self.columns)
    }

    /// The rows, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        self.tensor.view_mut().into_columns(self.before..self.before + self.columns)
    }

    /// The rows' elements in float64.
    pub fn to_f64(&self) -> Vec<f64> {
        self.view().to_f32_vec().into_iter().map(f64::from).collect()
    }

    /// Checks that nothing beside the rows was written.
    ///
    /// # Errors
    /// A message with the first element that was.
    pub fn untouched_beside(&self, what: &str) -> Result<(), String> {
        let width = self.tensor.dims()[1];
        let inside = self.before..self.before + self.columns;
        for (i, (now, then)) in to_f64(&self.tensor).iter().zip(&self.original).enumerate() {
            if !inside.contains(&(i % width)) && now != then {
                return Err(format!(
                    "{what}: wrote {now:e} beside its rows, in row {} at column {}",
                    i / width,
                    i % width
                ));
            }
        }
        Ok(())
    }
}

/// Checks that `compute` gives the same on 1, 2 and 3 threads.
///
/// # Panics
/// When it does not.
pub fn assert_independent_of_threads<T: PartialEq + Send>(compute: impl Fn() -> T + Sync) {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a machine can start three threads").install(&compute)
    };
    let alone = on(1);
    for threads in [2, 3] {
        assert!(on(threads) == alone, "{threads} threads give other bits than 1");
    }
}
