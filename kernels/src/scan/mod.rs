//! Segmented reverse scan: returns. out\[t\] = x\[t\] + discount * out\[t + 1\] within each sequence.
//!
//! `out` and `x` are float32 `[tokens]`, `cu_seqlens` u32 `[sequences + 1]`: checked on the host; on a device it has been checked before it
//! was uploaded.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
pub(crate) mod cpu;
mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// Discounted sums from each token to the end of its sequence.
///
/// # Errors
/// When shapes or dtypes disagree, or `cu_seqlens` does not cut the tokens into sequences.
pub fn forward(out: ViewMut<'_>, x: View<'_>, cu_seqlens: View<'_>, discount: f32) -> Result<()> {
    const OPERATION: &str = "scan.forward";
    let mut dims = NamedDims::new(OPERATION);
    dims.bind("x", x.dims(), ["tokens"])?;
    dims.bind("out", out.dims(), ["tokens"])?;
    check_offsets(OPERATION, cu_seqlens, x.dim(0))?;
    arguments::dense::<f32>(OPERATION, "out", out.as_view())?;
    arguments::dense::<f32>(OPERATION, "x", x)?;
    match x.device() {
        Device::Cpu => {
            cpu::forward(out.into_slice(), x.as_slice(), cu_seqlens.as_slice(), discount);
            Ok(())
        }
        _ => cuda::forward(out, x, cu_seqlens, discount),
    }
}

/// d_x\[t\] = d_out\[t\] + discount * d_x\[t - 1\] within each sequence.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_x: ViewMut<'_>,
    d_out: View<'_>,
    cu_seqlens: View<'_>,
    discount: f32,
) -> Result<()> {
    const OPERATION: &str = "scan.backward";
    let mut dims = NamedDims::new(OPERATION);
    dims.bind("d_out", d_out.dims(), ["tokens"])?;
    dims.bind("d_x", d_x.dims(), ["tokens"])?;
    check_offsets(OPERATION, cu_seqlens, d_out.dim(0))?;
    arguments::dense::<f32>(OPERATION, "d_x", d_x.as_view())?;
    arguments::dense::<f32>(OPERATION, "d_out", d_out)?;
    match d_out.device() {
        Device::Cpu => {
            cpu::backward(d_x.into_slice(), d_out.as_slice(), cu_seqlens.as_slice(), discount);
            Ok(())
        }
        _ => cuda::backward(d_x, d_out, cu_seqlens, discount),
    }
}

fn check_offsets(operation: &'static str, cu_seqlens: View<'_>, tokens: usize) -> Result<()> {
    NamedDims::new(operation).bind("cu_seqlens", cu_seqlens.dims(), ["sequences + 1"])?;
    let offsets = arguments::on_host::<u32>(operation, "cu_seqlens", cu_seqlens)?;
    let refuse = |message: String| Err(arguments::value(operation, message));
    if cu_seqlens.dim(0) == 0 {
        return refuse("`cu_seqlens` is empty, expected at least a 0".to_string());
    }
    let Some(offsets) = offsets else { return Ok(()) };
    let [first, last] = match offsets {
        [] => [0, 0],
        &[only] => [only, only],
        &[first, .., last] => [first, last],
    };
    if first != 0 {
        return refuse(format!("`cu_seqlens` starts at {first}, expected 0"));
    }
    if let Some(i) = offsets.windows(2).position(|pair| pair[0] > pair[1]) {
        return refuse(format!(
            "`cu_seqlens` falls from {} to {} at position {}",
            offsets[i],
            offsets[i + 1],
            i + 1
        ));
    }
    if last as usize != tokens {
        return refuse(format!("`cu_seqlens` ends at {last}, but there are {tokens} tokens"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor, View};
    use proptest::prelude::*;

    use crate::testing::{assert_independent_of_threads, cu_seqlens, generator, normal, zeros};

    fn run(x: View<'_>, offsets: &[u32], discount: f32) -> [Vec<f32>; 2] {
        let offsets = Tensor::from_slice(offsets, &[offsets.len()]).unwrap();
        let [mut out, mut d_x] = [(); 2].map(|()| zeros(DType::F32, x.dims()));
        super::forward(out.view_mut(), x, offsets.view(), discount).unwrap();
        super::backward(d_x.view_mut(), x, offsets.view(), discount).unwrap();
        [out, d_x].map(|tensor| tensor.view().to_f32_vec())
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let mut random = generator(1);
        let offsets = cu_seqlens(&mut random, 900, 300);
        let tokens = *offsets.last().unwrap() as usize;
        let x = normal(&mut random, DType::F32, &[tokens], 1.0);
        assert_independent_of_threads(|| run(x.view(), &offsets, 0.97));
    }

    #[test]
    fn a_sequence_s_result_does_not_depend_on_its_neighbours() {
        let x = normal(&mut generator(2), DType::F32, &[90], 1.0);
        let [out, d_x] = run(x.view(), &[0, 30, 30, 71, 90], 0.9);
        let [alone, d_alone] = run(x.view().rows(30..71), &[0, 41], 0.9);
        assert_eq!(alone, out[30..71]);
        assert_eq!(d_alone, d_x[30..71]);
    }

    #[cfg(feature = "emulated")]
    #[test]
    fn on_a_device_a_sequence_s_result_does_not_depend_on_its_neighbours() {
        use prime_runtime::Device;

        let x = normal(&mut generator(2), DType::F32, &[400], 1.0).to(Device::Emulated).unwrap();
        let run = |x: View<'_>, offsets: &[u32]| {
            let offsets = Tensor::from_slice(offsets, &[offsets.len()]).unwrap();
            let offsets = offsets.to(Device::Emulated).unwrap();
            let zeros = || Tensor::zeros(Device::Emulated, DType::F32, x.dims()).unwrap();
            let (mut out, mut d_x) = (zeros(), zeros());
            super::forward(out.view_mut(), x, offsets.view(), 0.97).unwrap();
            super::backward(d_x.view_mut(), x, offsets.view(), 0.97).unwrap();
            [out, d_x].map(|tensor| tensor.view().to_f32_vec())
        };
        let [out, d_x] = run(x.view(), &[0, 30, 30, 371, 400]);
        let [alone, d_alone] = run(x.view().rows(30..371), &[0, 341]);
        assert_eq!(alone, out[30..371]);
        assert_eq!(d_alone, d_x[30..371]);
    }

    #[test]
    fn offsets_that_do_not_cut_the_tokens_are_refused() {
        let x = zeros(DType::F32, &[4]);
        let refusal = |offsets: &[u32]| {
            let offsets = Tensor::from_slice(offsets, &[offsets.len()]).unwrap();
            let mut out = zeros(DType::F32, &[4]);
            super::forward(out.view_mut(), x.view(), offsets.view(), 1.0).unwrap_err().to_string()
        };
        assert_eq!(refusal(&[]), "scan.forward: `cu_seqlens` is empty, expected at least a 0");
        assert_eq!(refusal(&[1, 4]), "scan.forward: `cu_seqlens` starts at 1, expected 0");
        assert_eq!(
            refusal(&[0, 3, 2, 4]),
            "scan.forward: `cu_seqlens` falls from 3 to 2 at position 2"
        );
        assert_eq!(
            refusal(&[0, 5]),
            "scan.forward: `cu_seqlens` ends at 5, but there are 4 tokens"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        // Without a discount, returns of small integers are exact: no reward may cross into another sequence.
        #[test]
        fn returns_of_small_integers_are_exact(seed in 0u64..100_000) {
            let mut random = generator(seed);
            let offsets = cu_seqlens(&mut random, 9, 30);
            let tokens = *offsets.last().unwrap() as usize;
            let rewards: Vec<f32> = (0..tokens).map(|_| random.between(-5, 5) as f32).collect();
            let [returns, _] = run(View::from_slice(&rewards, &[tokens]), &offsets, 1.0);
            for ends in offsets.windows(2) {
                for t in ends[0] as usize..ends[1] as usize {
                    prop_assert_eq!(returns[t], rewards[t..ends[1] as usize].iter().sum::<f32>());
                }
            }
        }
    }
}
