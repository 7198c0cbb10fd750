// The policy's loss: a thread a token at a time, or a block a sequence where tokens share a ratio. Losses are summed in float64: a row of sums
// a block, added up by `reduce_partials`.
#include "prelude.cuh"

struct Inputs {
    Global<const float> new_log_probs, old_log_probs, advantages, weights;
    u32 tokens;
    // The bounds of the ratio, and the dual clip: infinite where there is none.
    float low, high, dual;
    // What the logarithm of the ratio is held to.
    float least, most;
    // Whether the clipped ratio is the weight of the log-prob.
    u32 weighs;
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

struct PolicyLossSequencesForward {
    // As above, a row a sequence.
    Global<double> partials;
    Global<const u32> cu_seqlens;
    Inputs inputs;
};

struct PolicyLossSequencesBackward {
    Global<float> d_log_probs;
    Global<const u32> cu_seqlens;
    Inputs inputs;
};

// One token's loss, its derivative by the new log-prob, and which clip held it.
struct Token {
    float loss, slope;
    bool clipped, clipped_dual;
};

// Written with comparisons that a NaN passes: the smaller or larger of a NaN and a number would be the number.
DEVICE float hold(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

DEVICE Token token_of(const Inputs &inputs, u32 t, float log_ratio) {
    Token token;
    const float advantage = inputs.advantages[t];
    const float ratio = exp(hold(log_ratio, inputs.least, inputs.most));
    const float bounded = hold(ratio, inputs.low, inputs.high);
    const float unclipped = -advantage * ratio, clipped = -advantage * bounded;
    if (inputs.weighs) {
        token.loss = clipped * inputs.new_log_probs[t];
        token.slope = clipped;
        token.clipped = ratio != bounded;
        token.clipped_dual = false;
        return token;
    }
    const float dual = advantage < 0.0f ? -advantage * inputs.dual : infinity;
    const bool inside = ratio >= inputs.low && ratio <= inputs.high;
    const float greater = unclipped < clipped ? clipped : unclipped;
    // The part of the unclipped branch's gradient that passes the maximum, then the minimum, then the hold.
    const float maximum = unclipped > clipped || inside ? 1.0f : unclipped == clipped ? 0.5f : 0.0f;
    const float minimum = greater < dual ? 1.0f : greater == dual ? 0.5f : 0.0f;
    const float held = log_ratio < inputs.least || log_ratio > inputs.most ? 0.0f : 1.0f;
    token.loss = greater > dual ? dual : greater;
    token.slope = unclipped * (maximum * minimum * held);
    token.clipped = clipped > unclipped;
    token.clipped_dual = greater > dual;
    return token;
}

constexpr int SUMS = 4;

DEVICE void add_token(double (&sums)[SUMS], const Inputs &inputs, u32 t, float log_ratio) {
    const Token token = token_of(inputs, t, log_ratio);
    const double weight = inputs.weights[t], loss = token.loss;
    const double old_log_prob = inputs.old_log_probs[t], new_log_prob = inputs.new_log_probs[t];
    sums[0] += weight * loss;
    sums[1] += token.clipped ? 1.0 : 0.0;
    sums[2] += token.clipped_dual ? 1.0 : 0.0;
    sums[3] += old_log_prob - new_log_prob;
}

DEVICE void write_sums(Global<double> partials, const double (&sums)[SUMS]) {
    UNROLL
    for (int i = 0; i < SUMS; i++) {
        const double sum = block_sum(sums[i], shared<double>(0));
        if (thread_index() == 0) partials[block_index() * SUMS + i] = sum;
    }
}

DEVICE float log_ratio_of(const Inputs &inputs, u32 t) { return inputs.new_log_probs[t] - inputs.old_log_probs[t]; }

// The mean of new - old over the tokens of a sequence, in every thread of the block.
DEVICE float mean_log_ratio(const Inputs &inputs, u32 start, u32 end) {
    double sum = 0.0;
    for (u32 t = start + thread_index(); t < end; t += 128) {
        const double new_log_prob = inputs.new_log_probs[t], old_log_prob = inputs.old_log_probs[t];
        sum += new_log_prob - old_log_prob;
    }
    return static_cast<float>(block_sum(sum, shared<double>(0)) / static_cast<double>(end - start));
}

KERNEL(256) void policy_loss_forward(const PolicyLossForward args) {
    double sums[SUMS] = {};
    for (u32 t = block_index() * 256 + thread_index(); t < args.inputs.tokens; t += block_count() * 256)
        add_token(sums, args.inputs, t, log_ratio_of(args.inputs, t));
    write_sums(args.partials, sums);
}

KERNEL(256) void policy_loss_backward(const PolicyLossBackward args) {
    const u32 t = block_index() * 256 + thread_index();
    if (t >= args.inputs.tokens) return;
    const float weight = args.inputs.weights[t];
    args.d_log_probs[t] = token_of(args.inputs, t, log_ratio_of(args.inputs, t)).slope * weight;
}

KERNEL(128) void policy_loss_sequences_forward(const PolicyLossSequencesForward args) {
    const u32 start = args.cu_seqlens[block_index()], end = args.cu_seqlens[block_index() + 1];
    const float log_ratio = mean_log_ratio(args.inputs, start, end);
    double sums[SUMS] = {};
    for (u32 t = start + thread_index(); t < end; t += 128) add_token(sums, args.inputs, t, log_ratio);
    write_sums(args.partials, sums);
}

KERNEL(128) void policy_loss_sequences_backward(const PolicyLossSequencesBackward args) {
    const u32 start = args.cu_seqlens[block_index()], end = args.cu_seqlens[block_index() + 1];
    const float log_ratio = mean_log_ratio(args.inputs, start, end);
    for (u32 t = start + thread_index(); t < end; t += 128) {
        const float weight = args.inputs.weights[t];
        args.d_log_probs[t] = token_of(args.inputs, t, log_ratio).slope * weight;
    }
}

INSTANCE(policy_loss_forward)
INSTANCE(policy_loss_backward)
INSTANCE(policy_loss_sequences_forward)
INSTANCE(policy_loss_sequences_backward)
