//! Token embedding: row `tokens[i]` of the table becomes row i of the output.
//!
//! `out` is `[tokens, hidden]`, `tokens` `[tokens]` (u32), `table` `[vocabulary, hidden]` (the dtype of `out`); rows may
//! be spread out. Tokens on the host are checked against the vocabulary; those on a device have been checked before they were uploaded.

use prime_runtime::{DType, Device, NamedDims, Result, View, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// Looks tokens up.
///
/// # Errors
/// When shapes or dtypes disagree, or a token is outside the vocabulary.
pub fn forward(out: ViewMut<'_>, tokens: View<'_>, table: View<'_>) -> Result<()> {
    const OPERATION: &str = "embedding.forward";
    arguments::float(OPERATION, "table", table)?;
    arguments::same_dtype(OPERATION, "out", out.as_view(), table.dtype())?;
    let names = [("table", table), ("out", out.as_view())];
    check_arguments(OPERATION, names, tokens)?;
    match out.device() {
        Device::Cpu => {
            let tokens = tokens.as_slice();
            with_float!(out.dtype(), E => cpu::forward::<E>(out, tokens, table));
            Ok(())
        }
        _ => cuda::forward(out, tokens, table),
    }
}

/// Adds each token's gradient to its row of `d_table` (float32), tokens in order.
///
/// # Errors
/// When shapes or dtypes disagree, or a token is outside the vocabulary.
pub fn backward(d_table: ViewMut<'_>, d_out: View<'_>, tokens: View<'_>) -> Result<()> {
    const OPERATION: &str = "embedding.backward";
    arguments::same_dtype(OPERATION, "d_table", d_table.as_view(), DType::F32)?;
    arguments::float(OPERATION, "d_out", d_out)?;
    let names = [("d_table", d_table.as_view()), ("d_out", d_out)];
    check_arguments(OPERATION, names, tokens)?;
    match d_out.device() {
        Device::Cpu => {
            let tokens = tokens.as_slice();
            with_float!(d_out.dtype(), E => cpu::backward::<E>(d_table, d_out, tokens));
            Ok(())
        }
        _ => cuda::backward(d_table, d_out, tokens),
    }
}

fn check_arguments(
    operation: &'static str,
    [(table_name, table), (out_name, out)]: [(&'static str, View<'_>); 2],
    tokens: View<'_>,
) -> Result<()> {
    let mut dims = NamedDims::new(operation);
    dims.bind(table_name, table.dims(), ["vocabulary", "hidden"])?;
    dims.bind("tokens", tokens.dims(), ["tokens"])?;
    dims.bind(out_name, out.dims(), ["tokens", "hidden"])?;
    let tokens = arguments::on_host::<u32>(operation, "tokens", tokens)?.unwrap_or_default();
    let vocabulary = table.dim(0);
    if let Some(position) = tokens.iter().position(|&token| token as usize >= vocabulary) {
        return Err(arguments::value(
            operation,
            format!(
                "token {} at position {position} is outside the vocabulary of {vocabulary}",
                tokens[position]
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor};
    use proptest::prelude::*;

    use crate::testing::{assert_independent_of_threads, from_f32, generator, normal, zeros};

    #[test]
    fn gradients_do_not_depend_on_the_number_of_threads() {
        let mut random = generator(1);
        let tokens: Vec<u32> = (0..500).map(|_| random.below(11)).collect();
        let tokens = Tensor::from_slice(&tokens, &[500]).unwrap();
        let d_out = normal(&mut random, DType::BF16, &[500, 211], 1.0);
        assert_independent_of_threads(|| {
            let mut d_table = zeros(DType::F32, &[11, 211]);
            super::backward(d_table.view_mut(), d_out.view(), tokens.view()).unwrap();
            d_table.view().to_f32_vec()
        });
    }

    #[cfg(feature = "emulated")]
    #[test]
    fn a_device_adds_the_gradients_of_a_token_in_the_order_of_the_host() {
        use prime_runtime::Device;

        // More tokens than a block looks at together, so that one walks on.
        let mut random = generator(4);
        let tokens: Vec<u32> = (0..1500).map(|_| random.below(3)).collect();
        let d_out = normal(&mut random, DType::F32, &[1500, 12], 1.0);
        let on = |device: Device| {
            let [tokens, d_out] = [&Tensor::from_slice(&tokens, &[1500]).unwrap(), &d_out]
                .map(|tensor| tensor.to(device).unwrap());
            let mut d_table = Tensor::zeros(device, DType::F32, &[3, 12]).unwrap();
            super::backward(d_table.view_mut(), d_out.view(), tokens.view()).unwrap();
            d_table.view().to_f32_vec()
        };
        assert_eq!(on(Device::Emulated), on(Device::Cpu));
    }

    #[test]
    fn gradients_over_micro_batches_have_the_bits_of_one_batch() {
        let mut random = generator(2);
        let tokens: Vec<u32> = (0..60).map(|_| random.below(4)).collect();
        let tokens = Tensor::from_slice(&tokens, &[60]).unwrap();
        let d_out = normal(&mut random, DType::F32, &[60, 37], 1.0);
        let [mut whole, mut parts] = [(); 2].map(|()| zeros(DType::F32, &[4, 37]));
        super::backward(whole.view_mut(), d_out.view(), tokens.view()).unwrap();
        for rows in [0..17, 17..17, 17..60] {
            let (d_out, tokens) = (d_out.view().rows(rows.clone()), tokens.view().rows(rows));
            super::backward(parts.view_mut(), d_out, tokens).unwrap();
        }
        assert_eq!(whole.as_slice::<f32>(), parts.as_slice::<f32>());
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_named_and_nothing_is_written() {
        let tokens = Tensor::from_slice(&[1u32, 5, 0], &[3]).unwrap();
        let table = from_f32(&[1.0; 10], DType::F32, &[5, 2]);
        let mut out = zeros(DType::F32, &[3, 2]);
        let error = super::forward(out.view_mut(), tokens.view(), table.view()).unwrap_err();
        let expected = "token 5 at position 1 is outside the vocabulary of 5";
        assert_eq!(error.to_string(), format!("embedding.forward: {expected}"));
        assert_eq!(out.as_slice::<f32>(), [0.0; 6]);
        let mut d_table = zeros(DType::F32, &[5, 2]);
        let error = super::backward(d_table.view_mut(), table.head(3), tokens.view()).unwrap_err();
        assert_eq!(error.to_string(), format!("embedding.backward: {expected}"));
    }

    #[test]
    fn arguments_that_disagree_are_refused_by_name() {
        let mut out = zeros(DType::F32, &[3, 2]);
        let refusal = |out: &mut Tensor, tokens: &Tensor, table: &Tensor| {
            super::forward(out.view_mut(), tokens.view(), table.view()).unwrap_err().to_string()
        };
        let (tokens, table) = (zeros(DType::U32, &[3]), zeros(DType::F32, &[5, 2]));
        assert_eq!(
            refusal(&mut out, &zeros(DType::F32, &[3]), &table),
            "embedding.forward: `tokens` is float32, expected uint32"
        );
        assert_eq!(
            refusal(&mut out, &tokens, &zeros(DType::BF16, &[5, 2])),
            "embedding.forward: `out` is float32, expected bfloat16"
        );
        assert_eq!(
            refusal(&mut zeros(DType::F32, &[4, 2]), &tokens, &table),
            "embedding.forward: `out` is [4, 2], but its dimension `tokens` is 3 in `tokens`"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        // Looking up and adding back are adjoint: <forward(table), d> = <table, backward(d)>, exactly on small integers.
        #[test]
        fn backward_is_the_adjoint_of_forward(
            tokens in proptest::collection::vec(0u32..7, 0..50),
            hidden in 1usize..80,
            seed in 0u64..1000,
        ) {
            let mut random = generator(seed);
            let mut integers = |rows: usize| {
                let values: Vec<f32> = (0..rows * hidden).map(|_| random.between(-9, 9) as f32).collect();
                from_f32(&values, DType::BF16, &[rows, hidden])
            };
            let (table, d_out) = (integers(7), integers(tokens.len()));
            let ids = Tensor::from_slice(&tokens, &[tokens.len()]).unwrap();
            let mut out = zeros(DType::BF16, &[tokens.len(), hidden]);
            let mut d_table = zeros(DType::F32, &[7, hidden]);
            super::forward(out.view_mut(), ids.view(), table.view()).unwrap();
            super::backward(d_table.view_mut(), d_out.view(), ids.view()).unwrap();
            let dot = |a: &Tensor, b: &Tensor| -> f32 {
                a.view().to_f32_vec().iter().zip(b.view().to_f32_vec()).map(|(a, b)| a * b).sum()
            };
            prop_assert_eq!(dot(&out, &d_out), dot(&table, &d_table));
        }
    }
}
