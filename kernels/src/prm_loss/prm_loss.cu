// The implicit PRM's cross-entropy: a block a response. Everything is float64, as on the host; the responses' losses are added in order by
// `reduce_partials`.
#include "prelude.cuh"

struct PrmLossForward {
    Global<float> probabilities;
    // One a response.
    Global<double> losses;
    Global<const float> prm_log_probs, ref_log_probs, outcomes;
    Global<const u32> cu_seqlens;
    float beta;
};

struct PrmLossBackward {
    Global<float> d_prm_log_probs;
    Global<const float> probabilities, outcomes;
    Global<const u32> cu_seqlens;
    // beta / responses.
    double scale;
};

KERNEL(128) void prm_loss_forward(const PrmLossForward args) {
    const u32 response = block_index(), end = args.cu_seqlens[response + 1];
    double log_ratio = 0.0;
    for (u32 t = args.cu_seqlens[response] + thread_index(); t < end; t += 128) {
        const double prm = args.prm_log_probs[t], reference = args.ref_log_probs[t];
        log_ratio += prm - reference;
    }
    log_ratio = block_sum(log_ratio, shared<double>(0));
    if (thread_index() != 0) return;
    const double logit = static_cast<double>(args.beta) * log_ratio, outcome = args.outcomes[response];
    args.probabilities[response] = static_cast<float>(1.0 / (1.0 + exp(-logit)));
    // With y the outcome: softplus(z) - y z, where softplus(z) = max(z, 0) + log(1 + e^-|z|).
    const double positive = logit < 0.0 ? 0.0 : logit;
    args.losses[response] = positive - outcome * logit + log1p(exp(-abs(logit)));
}

KERNEL(128) void prm_loss_backward(const PrmLossBackward args) {
    const u32 response = block_index(), end = args.cu_seqlens[response + 1];
    const double probability = args.probabilities[response], outcome = args.outcomes[response];
    const float of_token = static_cast<float>((probability - outcome) * args.scale);
    for (u32 t = args.cu_seqlens[response] + thread_index(); t < end; t += 128) args.d_prm_log_probs[t] = of_token;
}

INSTANCE(prm_loss_forward)
INSTANCE(prm_loss_backward)
