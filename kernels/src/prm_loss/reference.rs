//! The oracle, in float64.

/// s of every response.
pub fn probabilities(prm: &[f64], reference: &[f64], cu_seqlens: &[u32], beta: f64) -> Vec<f64> {
    logits(prm, reference, cu_seqlens, beta).into_iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect()
}

/// The sum of the cross-entropies over `responses`.
pub fn loss(
    prm: &[f64],
    reference: &[f64],
    outcomes: &[f64],
    cu_seqlens: &[u32],
    beta: f64,
    responses: usize,
) -> f64 {
    // -log s = softplus(-z), -log (1 - s) = softplus(z).
    let softplus = |z: f64| z.max(0.0) + (-z.abs()).exp().ln_1p();
    let logits = logits(prm, reference, cu_seqlens, beta);
    let losses =
        logits.iter().zip(outcomes).map(|(&z, y)| y * softplus(-z) + (1.0 - y) * softplus(z));
    losses.sum::<f64>() / responses as f64
}

/// Gradient of the loss by the PRM's log-probs.
pub fn backward(
    probabilities: &[f64],
    outcomes: &[f64],
    cu_seqlens: &[u32],
    beta: f64,
    responses: usize,
) -> Vec<f64> {
    let mut gradient = Vec::new();
    for (i, span) in cu_seqlens.windows(2).enumerate() {
        let of_token = (probabilities[i] - outcomes[i]) * beta / responses as f64;
        gradient.extend((span[0]..span[1]).map(|_| of_token));
    }
    gradient
}

fn logits(prm: &[f64], reference: &[f64], cu_seqlens: &[u32], beta: f64) -> Vec<f64> {
    let sum = |span: &[u32]| -> f64 {
        (span[0] as usize..span[1] as usize).map(|t| prm[t] - reference[t]).sum()
    };
    cu_seqlens.windows(2).map(|span| beta * sum(span)).collect()
}
