// The clipped surrogate: a thread a token at a time. Its losses are summed in float64: a row of sums a block, added up by `reduce_partials`.
#include "prelude.cuh"

struct Inputs {
    Global<const float> new_log_probs, old_log_probs, advantages, weights;
    u32 tokens;
    // The bounds of the ratio, and the dual clip: infinite where there is none.
    float low, high, dual;
};

struct PolicyLossForward {
    // A row a block: the sums of weight * loss, of tokens clipped, of tokens held by the dual clip, and of old - new.
    Global<double> partials;
    Inputs inputs;
};

struct PolicyLossBackward {
    Global<float> d_log_probs;
    Inputs inputs;
};

// One token's loss, its derivative by the new log-prob, and which clip held it.
struct Token {
    float loss, slope, log_ratio;
    bool clipped, clipped_dual;
};

// Written with comparisons that a NaN passes: the smaller or larger of a NaN and a number would be the number.
DEVICE float hold(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

DEVICE Token token_of(const Inputs &inputs, u32 t) {
    constexpr float MOST_LOG_RATIO = 20.0f;
    Token token;
    const float advantage = inputs.advantages[t];
    token.log_ratio = inputs.new_log_probs[t] - inputs.old_log_probs[t];
    const float ratio = exp(hold(token.log_ratio, -MOST_LOG_RATIO, MOST_LOG_RATIO));
    const float unclipped = -advantage * ratio, clipped = -advantage * hold(ratio, inputs.low, inputs.high);
    const float dual = advantage < 0.0f ? -advantage * inputs.dual : infinity;
    const bool inside = ratio >= inputs.low && ratio <= inputs.high;
    const float greater = unclipped < clipped ? clipped : unclipped;
    // The part of the unclipped branch's gradient that passes the maximum, then the minimum, then the hold.
    const float maximum = unclipped > clipped || inside ? 1.0f : unclipped == clipped ? 0.5f : 0.0f;
    const float minimum = greater < dual ? 1.0f : greater == dual ? 0.5f : 0.0f;
    const float held = abs(token.log_ratio) > MOST_LOG_RATIO ? 0.0f : 1.0f;
    token.loss = greater > dual ? dual : greater;
    token.slope = unclipped * (maximum * minimum * held);
    token.clipped = clipped > unclipped;
    token.clipped_dual = greater > dual;
    return token;
}

KERNEL(256) void policy_loss_forward(const PolicyLossForward args) {
    constexpr int SUMS = 4;
    double sums[SUMS] = {};
    for (u32 t = block_index() * 256 + thread_index(); t < args.inputs.tokens; t += block_count() * 256) {
        const Token token = token_of(args.inputs, t);
        const double weight = args.inputs.weights[t], loss = token.loss;
        const double old_log_prob = args.inputs.old_log_probs[t], new_log_prob = args.inputs.new_log_probs[t];
        sums[0] += weight * loss;
        sums[1] += token.clipped ? 1.0 : 0.0;
        sums[2] += token.clipped_dual ? 1.0 : 0.0;
        sums[3] += old_log_prob - new_log_prob;
    }
    UNROLL
    for (int i = 0; i < SUMS; i++) {
        const double sum = block_sum(sums[i], shared<double>(0));
        if (thread_index() == 0) args.partials[block_index() * SUMS + i] = sum;
    }
}

KERNEL(256) void policy_loss_backward(const PolicyLossBackward args) {
    const u32 t = block_index() * 256 + thread_index();
    if (t >= args.inputs.tokens) return;
    const float weight = args.inputs.weights[t];
    args.d_log_probs[t] = token_of(args.inputs, t).slope * weight;
}

INSTANCE(policy_loss_forward)
INSTANCE(policy_loss_backward)
