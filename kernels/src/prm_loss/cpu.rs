//! The host version. A response is one chain of float64 additions in token order: its numbers do not depend on the batch.

pub(super) fn forward(
    probabilities: &mut [f32],
    prm_log_probs: &[f32],
    ref_log_probs: &[f32],
    outcomes: &[f32],
    cu_seqlens: &[u32],
    beta: f32,
    responses: usize,
) -> f64 {
    let mut total = 0.0;
    for (i, span) in cu_seqlens.windows(2).enumerate() {
        let tokens = span[0] as usize..span[1] as usize;
        let log_ratio: f64 = prm_log_probs[tokens.clone()]
            .iter()
            .zip(&ref_log_probs[tokens])
            .map(|(&prm, &reference)| f64::from(prm) - f64::from(reference))
            .sum();
        let logit = f64::from(beta) * log_ratio;
        probabilities[i] = (1.0 / (1.0 + (-logit).exp())) as f32;
        // With y the outcome: softplus(z) - y z, where softplus(z) = max(z, 0) + log(1 + e^-|z|).
        total += logit.max(0.0) - f64::from(outcomes[i]) * logit + (-logit.abs()).exp().ln_1p();
    }
    total / responses.max(1) as f64
}

pub(super) fn backward(
    d_prm_log_probs: &mut [f32],
    probabilities: &[f32],
    outcomes: &[f32],
    cu_seqlens: &[u32],
    beta: f32,
    responses: usize,
) {
    let scale = f64::from(beta) / responses.max(1) as f64;
    for (i, span) in cu_seqlens.windows(2).enumerate() {
        let of_token = (f64::from(probabilities[i]) - f64::from(outcomes[i])) * scale;
        d_prm_log_probs[span[0] as usize..span[1] as usize].fill(of_token as f32);
    }
}
