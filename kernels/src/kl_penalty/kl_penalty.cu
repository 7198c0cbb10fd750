// A penalty for leaving a reference: a thread a token at a time. Its sums are float64: a row of them a block, added up by `reduce_partials`.
#include "prelude.cuh"

struct KlPenaltyForward {
    // A row a block: the sums of weight * penalty and of penalty.
    Global<double> partials;
    Global<float> penalties;
    Global<const float> new_log_probs, reference_log_probs, weights;
    u32 tokens, kind;
};

struct KlPenaltyBackward {
    Global<float> d_log_probs;
    Global<const float> new_log_probs, reference_log_probs, weights;
    u32 tokens, kind;
};

constexpr u32 KL = 0, ABS = 1, MSE = 2;

struct Penalty {
    float value, slope;
};

// Written with comparisons that a NaN passes.
DEVICE Penalty penalty_of(float d, u32 kind) {
    constexpr float MOST_LOG_RATIO = 20.0f, MOST_PENALTY = 10.0f;
    Penalty penalty;
    if (kind == KL) {
        penalty.value = d, penalty.slope = 1.0f;
    } else if (kind == ABS) {
        penalty.value = abs(d), penalty.slope = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
    } else if (kind == MSE) {
        penalty.value = 0.5f * d * d, penalty.slope = d;
    } else {
        const float held = d < -MOST_LOG_RATIO ? -MOST_LOG_RATIO : d > MOST_LOG_RATIO ? MOST_LOG_RATIO : d;
        const float ratio = exp(-held), value = ratio + held - 1.0f;
        penalty.value = value > MOST_PENALTY ? MOST_PENALTY : value;
        penalty.slope = value > MOST_PENALTY ? 0.0f : 1.0f - ratio;
    }
    return penalty;
}

KERNEL(256) void kl_penalty_forward(const KlPenaltyForward args) {
    double loss = 0.0, sum = 0.0;
    for (u32 t = block_index() * 256 + thread_index(); t < args.tokens; t += block_count() * 256) {
        const float value = penalty_of(args.new_log_probs[t] - args.reference_log_probs[t], args.kind).value;
        args.penalties[t] = value;
        const double weight = args.weights[t], penalty = value;
        loss += weight * penalty;
        sum += penalty;
    }
    loss = block_sum(loss, shared<double>(0));
    sum = block_sum(sum, shared<double>(0));
    if (thread_index() != 0) return;
    args.partials[block_index() * 2] = loss;
    args.partials[block_index() * 2 + 1] = sum;
}

KERNEL(256) void kl_penalty_backward(const KlPenaltyBackward args) {
    const u32 t = block_index() * 256 + thread_index();
    if (t >= args.tokens) return;
    const float slope = penalty_of(args.new_log_probs[t] - args.reference_log_probs[t], args.kind).slope;
    const float weight = args.weights[t], before = args.d_log_probs[t];
    args.d_log_probs[t] = before + weight * slope;
}

INSTANCE(kl_penalty_forward)
INSTANCE(kl_penalty_backward)
