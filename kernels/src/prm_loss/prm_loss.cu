// Losses of the implicit PRM: a block a response where its logit is held against targets, a warp a response where its prefixes' values are.
// Everything is float64, as on the host; the responses' losses are added in order by `reduce_partials`.
#include "prelude.cuh"

struct Inputs {
    Global<const float> prm_log_probs, ref_log_probs;
    Global<const u32> cu_seqlens;
    Global<const float> labels, offsets, weights;
    Global<const u32> cu_targets;
    double divisor;
    u32 sequences;
    float beta;
};

struct PrmLossForward {
    // One a response.
    Global<double> losses;
    Inputs inputs;
};

struct PrmLossBackward {
    Global<float> d_prm_log_probs;
    Inputs inputs;
};

DEVICE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// What a response's targets make of a logit: their weighted costs, or the slope of these.
template <bool ERROR, bool SLOPE> DEVICE double targets(const Inputs& in, u32 response, double logit) {
    double sum = 0.0;
    const u32 end = in.cu_targets[response + 1];
    for (u32 k = in.cu_targets[response]; k < end; k++) {
        const double x = logit - static_cast<double>(in.offsets[k]), label = in.labels[k], weight = in.weights[k];
        double of_target;
        if constexpr (ERROR) {
            of_target = SLOPE ? (1.0 - 2.0 * label) * sigmoid(x) * sigmoid(-x) : label * sigmoid(-x) + (1.0 - label) * sigmoid(x);
        } else {
            // softplus(x) - y x, where softplus(x) = max(x, 0) + log(1 + e^-|x|).
            of_target = SLOPE ? sigmoid(x) - label : (x < 0.0 ? 0.0 : x) - label * x + log1p(exp(-abs(x)));
        }
        sum += weight * of_target;
    }
    return sum;
}

DEVICE double log_ratio(const Inputs& in, u32 token) {
    const double prm = in.prm_log_probs[token], reference = in.ref_log_probs[token];
    return prm - reference;
}

// The block's response's logit, in all threads.
DEVICE double response_logit(const Inputs& in, u32 response) {
    double sum = 0.0;
    const u32 end = in.cu_seqlens[response + 1];
    for (u32 t = in.cu_seqlens[response] + thread_index(); t < end; t += 128) sum += log_ratio(in, t);
    return static_cast<double>(in.beta) * block_sum(sum, shared<double>(0));
}

template <bool ERROR> KERNEL(128) void prm_loss_forward(const PrmLossForward args) {
    const u32 response = block_index();
    const double logit = response_logit(args.inputs, response);
    if (thread_index() == 0) args.losses[response] = targets<ERROR, false>(args.inputs, response, logit);
}

template <bool ERROR> KERNEL(128) void prm_loss_backward(const PrmLossBackward args) {
    const Inputs& in = args.inputs;
    const u32 response = block_index(), end = in.cu_seqlens[response + 1];
    const double logit = response_logit(in, response);
    const double scale = static_cast<double>(in.beta) / in.divisor;
    const float of_token = static_cast<float>(scale * targets<ERROR, true>(in, response, logit));
    for (u32 t = in.cu_seqlens[response] + thread_index(); t < end; t += 128) args.d_prm_log_probs[t] = of_token;
}

// Sums from the first lane to this one.
DEVICE double running_sum(double sum) {
    UNROLL
    for (u32 i = 0; i < 5; i++) {
        const double below = shuffle_up(sum, 1u << i);
        if (lane() >= 1u << i) sum += below;
    }
    return sum;
}

template <bool ERROR> KERNEL(128) void prm_loss_prefixes_forward(const PrmLossForward args) {
    const Inputs& in = args.inputs;
    const u32 response = block_index() * 4 + warp();
    if (response >= in.sequences) return;
    const u32 start = in.cu_seqlens[response], length = in.cu_seqlens[response + 1] - start;
    double entering = 0.0, loss = 0.0;
    for (u32 chunk = 0; chunk < length; chunk += 32) {
        const u32 t = chunk + lane();
        const double sum = entering + running_sum(t < length ? log_ratio(in, start + t) : 0.0);
        const double value = static_cast<double>(in.beta) * sum / static_cast<double>(t + 1);
        if (t < length) loss += targets<ERROR, false>(in, response, value);
        entering = shuffle(sum, 31);
    }
    loss = warp_sum(loss);
    if (lane() == 0) args.losses[response] = loss;
}

template <bool ERROR> KERNEL(128) void prm_loss_prefixes_backward(const PrmLossBackward args) {
    const Inputs& in = args.inputs;
    const u32 response = block_index() * 4 + warp();
    if (response >= in.sequences) return;
    const u32 start = in.cu_seqlens[response], length = in.cu_seqlens[response + 1] - start;
    const double scale = static_cast<double>(in.beta) / in.divisor;
    double entering = 0.0;
    for (u32 chunk = 0; chunk < length; chunk += 32) {
        const u32 t = chunk + lane();
        const double sum = entering + running_sum(t < length ? log_ratio(in, start + t) : 0.0);
        const double tokens = static_cast<double>(t + 1);
        const double slope = scale * targets<ERROR, true>(in, response, static_cast<double>(in.beta) * sum / tokens);
        if (t < length) args.d_prm_log_probs[start + t] = static_cast<float>(slope / tokens);
        entering = shuffle(sum, 31);
    }
    // A token is in every prefix that ends at it or later.
    sync_warp();
    entering = 0.0;
    for (u32 chunk = 0; chunk < length; chunk += 32) {
        const u32 from_end = chunk + lane(), place = start + length - 1 - from_end;
        double slope = 0.0;
        if (from_end < length) slope = args.d_prm_log_probs[place];
        const double sum = entering + running_sum(slope);
        if (from_end < length) args.d_prm_log_probs[place] = static_cast<float>(sum);
        entering = shuffle(sum, 31);
    }
}

INSTANCE(prm_loss_forward<false>)
INSTANCE(prm_loss_forward<true>)
INSTANCE(prm_loss_backward<false>)
INSTANCE(prm_loss_backward<true>)
INSTANCE(prm_loss_prefixes_forward<false>)
INSTANCE(prm_loss_prefixes_forward<true>)
INSTANCE(prm_loss_prefixes_backward<false>)
INSTANCE(prm_loss_prefixes_backward<true>)
