// sample: a block a row. The row's logits, over its temperature, and the states of its segments come from log_prob's kernels.
//
// Entries are ordered by logit, then by id, and every truncation keeps a head of that order, so that all of them together are one
// boundary: a logit and the last id kept of those that have it. It is found without sorting, by halving an interval of logits: first over
// the row in memory, while the interval holds more entries than fit shared memory, then over these. Entries are taken in the order of
// their ids and sums in fixed trees, so a row always gives the same bits. Segments whose greatest logit lies below an interval are not
// read, which for most rows is nearly all of them.
#include "prelude.cuh"

struct SampleDraw {
    Global<u32> tokens;
    Global<float> log_probs;
    Global<const float> logits, partials;
    Global<const u32> settings;
    u32 vocabulary, stream;
    u64 logits_stride, settings_stride;
};

namespace sample {

constexpr u32 THREADS = 512;
constexpr u32 WARPS = THREADS / 32;

/// Entries of a segment, and states of it.
constexpr u32 SEGMENT = 1024;
constexpr u32 STATES = 4;

/// Entries that the halving of an interval may hold in shared memory.
constexpr u32 LISTED = 4096;

/// The last id where all entries at a boundary are kept.
constexpr u32 ALL = 0xffffffffu;

/// The least finite float.
constexpr float LOWEST = -3.402823466e38f;

/// Bits of `Settings::flags`.
constexpr u32 GREEDY = 1;
constexpr u32 HAS_MIN_P = 2;

/// A row's settings. Word i of row r is at settings[i * settings_stride + r]; word 0 is the inverse temperature, which is log_prob's.
struct Settings {
    u32 flags, top_k;
    float top_p;
    double log_min_p;
    u64 seed, sequence;
    u32 position;
};

DEVICE Settings settings_of(Global<const u32> column, u64 stride) {
    const auto word = [&](u32 i) -> u32 { return column[i * stride]; };
    const auto pair = [&](u32 i) { return static_cast<u64>(word(i + 1)) << 32 | word(i); };
    return Settings{word(1), word(2), bit_cast<float>(word(3)), bit_cast<double>(pair(4)), pair(6), pair(8), word(10)};
}

/// A number that rises with the float; zeros of both signs have the same.
DEVICE u32 key_of(float value) {
    const u32 bits = bit_cast<u32>(value + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// The inverse of `key_of`.
DEVICE float value_of(u32 key) { return bit_cast<float>(key >> 31 ? key & 0x7fffffffu : ~key); }

/// What threads know of the row, and its working memory.
struct Row {
    Global<const float> logits;
    u32 vocabulary, segments;
    /// The greatest logit.
    float greatest;
    /// Sum of e^(logit - greatest).
    double sum;
    /// By segment: what the last pass found.
    Shared<double> masses;
    Shared<u32> counts;
    /// The greatest logit of each state.
    Shared<float> maxima;
    /// Logits of an interval.
    Shared<float> list;
    /// What one warp tells the others.
    Shared<double> told;

    DEVICE float mass_of(float logit) const { return exp(logit - greatest); }
    DEVICE bool reaches(u32 segment, u32 key) const {
        const Vector<float, STATES> of_states = load<STATES>(maxima + segment * STATES);
        return key_of(max(max(of_states[0], of_states[1]), max(of_states[2], of_states[3]))) >= key;
    }
};

/// Keys from `low` to below `high`; of entries at `low` those with ids up to `last`.
struct Interval {
    u32 low, high, last;

    DEVICE bool holds(u32 key, u32 id) const { return key >= low && key < high && (key > low || id <= last); }
};

struct Measure {
    double count, mass;
};

/// Counts and weighs the entries of an interval: by segment into the row's memory, and all of them.
DEVICE Measure measure(const Row &row, const Interval &interval) {
    for (u32 segment = warp(); segment < row.segments; segment += WARPS) {
        u32 count = 0;
        double mass = 0.0;
        if (row.reaches(segment, interval.low)) {
            for (u32 id = segment * SEGMENT + lane(); id < min((segment + 1) * SEGMENT, row.vocabulary); id += 32) {
                const float logit = row.logits[id];
                if (interval.holds(key_of(logit), id)) {
                    count++;
                    mass += static_cast<double>(row.mass_of(logit));
                }
            }
            count = warp_sum(count);
            mass = warp_sum(mass);
        }
        if (lane() == 0) {
            row.counts[segment] = count;
            row.masses[segment] = mass;
        }
    }
    sync_block();
    if (warp() == 0) {
        Measure all{0.0, 0.0};
        for (u32 segment = lane(); segment < row.segments; segment += 32) {
            all.count += static_cast<double>(row.counts[segment]);
            all.mass += row.masses[segment];
        }
        all.count = warp_sum(all.count);
        all.mass = warp_sum(all.mass);
        if (lane() == 0) {
            row.told[0] = all.count;
            row.told[1] = all.mass;
        }
    }
    sync_block();
    const Measure all{row.told[0], row.told[1]};
    // What is told next waits until all have read this.
    sync_block();
    return all;
}

/// Writes the logits of an interval just measured, LISTED at most, into the row's list, in the order of ids.
DEVICE void collect(const Row &row, const Interval &interval) {
    if (warp() == 0) {
        u32 before = 0;
        for (u32 first = 0; first < row.segments; first += 32) {
            const u32 segment = first + lane(), count = segment < row.segments ? static_cast<u32>(row.counts[segment]) : 0;
            u32 through = count;
            UNROLL
            for (u32 distance = 1; distance < 32; distance *= 2) {
                const u32 of_lower = shuffle_up(through, distance);
                if (lane() >= distance) through += of_lower;
            }
            if (segment < row.segments) row.counts[segment] = before + through - count;
            before += shuffle(through, 31);
        }
    }
    sync_block();
    for (u32 segment = warp(); segment < row.segments; segment += WARPS) {
        if (!row.reaches(segment, interval.low)) continue;
        u32 place = row.counts[segment];
        for (u32 first = segment * SEGMENT; first < min((segment + 1) * SEGMENT, row.vocabulary); first += 32) {
            const u32 id = first + lane();
            const float logit = id < row.vocabulary ? row.logits[id] : LOWEST;
            const bool held = id < row.vocabulary && interval.holds(key_of(logit), id);
            const u32 all_held = ballot(held);
            if (held) row.list[place + popcount(all_held & ((1u << lane()) - 1))] = logit;
            place += popcount(all_held);
        }
    }
    sync_block();
}

/// A boundary, and what lies above it.
struct Found {
    u32 key;
    Measure above;
};

/// The greatest key such that the entries of a list from it on, with what lies `above` the list, number (or weigh) at least `target`; `low`
/// should there be none. One warp.
DEVICE Found halve(const Row &row, Shared<float> list, u32 count, u32 low, u32 high, double target, bool by_mass, const Measure &above) {
    Measure of_high = above;
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        Measure reached{0.0, 0.0};
        for (u32 i = lane(); i < count; i += 32) {
            const float logit = list[i];
            if (key_of(logit) >= middle) {
                reached.count += 1.0;
                reached.mass += static_cast<double>(row.mass_of(logit));
            }
        }
        reached.count = above.count + warp_sum(reached.count);
        reached.mass = above.mass + warp_sum(reached.mass);
        if ((by_mass ? reached.mass : reached.count) >= target) {
            low = middle;
        } else {
            high = middle;
            of_high = reached;
        }
    }
    return Found{low, of_high};
}

/// The greatest key such that all entries from it on number (or weigh) at least `target`; `low` should there be none.
DEVICE Found find(const Row &row, u32 low, double target, bool by_mass) {
    u32 high = key_of(row.greatest) + 1, from = low;
    Found found{low, {0.0, 0.0}};
    for (;;) {
        const Measure measured = measure(row, Interval{from, high, ALL});
        if (from > low) {
            // The upper half: it holds the boundary, or lies above it.
            const Measure reached{found.above.count + measured.count, found.above.mass + measured.mass};
            if ((by_mass ? reached.mass : reached.count) >= target) {
                low = from;
            } else {
                high = from;
                found.above = reached;
            }
            from = low;
        } else if (high - low <= 1) {
            found.key = low;
            return found;
        } else if (measured.count > LISTED) {
            from = low + (high - low) / 2;
        } else {
            collect(row, Interval{low, high, ALL});
            if (warp() == 0) {
                found = halve(row, row.list, static_cast<u32>(measured.count), low, high, target, by_mass, found.above);
                if (lane() == 0) row.told[0] = found.key, row.told[1] = found.above.count, row.told[2] = found.above.mass;
            }
            sync_block();
            found = Found{static_cast<u32>(static_cast<double>(row.told[0])), {row.told[1], row.told[2]}};
            sync_block();
            return found;
        }
    }
}

/// The id of the n-th entry with a key that was just measured, n from 1 to their number.
DEVICE u32 nth_at(const Row &row, u32 key, double n) {
    if (warp() == 0) {
        u32 segment = 0, left = static_cast<u32>(n);
        for (u32 count = row.counts[segment]; left > count && segment + 1 < row.segments; count = row.counts[++segment]) left -= count;
        for (u32 first = segment * SEGMENT; left > 0 && first < row.vocabulary; first += 32) {
            const u32 id = first + lane();
            const bool has = id < row.vocabulary && key_of(row.logits[min(id, row.vocabulary - 1)]) == key;
            const u32 all_that_have = ballot(has);
            if (has && popcount(all_that_have & ((1u << lane()) - 1)) + 1 == left) row.told[0] = static_cast<double>(id);
            left -= min(left, popcount(all_that_have));
        }
    }
    sync_block();
    const u32 id = static_cast<u32>(static_cast<double>(row.told[0]));
    sync_block();
    return id;
}

/// A key that the k-th greatest entry reaches: each of the greatest logits of states is an entry, so it is no less than the k-th of these.
DEVICE u32 least_of_top_k(const Row &row, u32 k) {
    const u32 states = row.segments * STATES, lowest = key_of(LOWEST);
    if (states < k) return lowest;
    if (warp() == 0) {
        const Found found = halve(row, row.maxima, states, lowest, key_of(row.greatest) + 1, k, false, Measure{0.0, 0.0});
        if (lane() == 0) row.told[0] = found.key;
    }
    sync_block();
    const u32 key = static_cast<u32>(static_cast<double>(row.told[0]));
    sync_block();
    return key;
}

/// A key that the last entry of the nucleus reaches: entries less likely than (1 - top_p) / vocabulary hold less than 1 - top_p together.
DEVICE u32 least_of_top_p(const Row &row, float top_p) {
    const double rest = (1.0 - static_cast<double>(top_p)) * row.sum / row.vocabulary;
    // A little lower, for roundings.
    const double bound = row.greatest + log(rest) - 1e-3 - 1e-6 * static_cast<double>(abs(row.greatest));
    return key_of(max(static_cast<float>(bound), LOWEST));
}

/// What is kept of a row.
DEVICE Interval truncate(const Row &row, const Settings &settings) {
    const bool greedy = settings.flags & GREEDY, has_top_k = !greedy && settings.top_k > 0 && settings.top_k < row.vocabulary;
    const bool has_top_p = !greedy && settings.top_p < 1.0f;
    const u32 of_greatest = key_of(row.greatest);
    u32 least = key_of(LOWEST);
    if (!greedy && settings.flags & HAS_MIN_P) least = key_of(static_cast<float>(static_cast<double>(row.greatest) + settings.log_min_p));

    // Keys from `low` on are kept, of those at `low` only so many.
    u32 low = greedy ? of_greatest : least;
    double at_low = greedy ? 1.0 : infinity;
    double mass = row.sum;
    for (u32 step = has_top_k ? 0 : 1; step < (has_top_p ? 2u : 1u); step++) {
        const bool by_mass = step == 1;
        u32 from = low;
        double target = settings.top_k;
        if (by_mass) {
            target = static_cast<double>(settings.top_p) * mass;
            if (!has_top_k) from = max(low, least_of_top_p(row, settings.top_p));
        } else {
            from = least_of_top_k(row, settings.top_k);
            // What min-p leaves out need not be told apart, unless top-p asks for the mass of all that top-k keeps.
            if (!has_top_p) from = max(low, from);
        }
        const Found found = find(row, from, target, by_mass);
        const double each = row.mass_of(value_of(found.key));
        double count = settings.top_k - found.above.count;
        if (by_mass) {
            const double needed = min(max((target - found.above.mass) / each, 1.0), static_cast<double>(row.vocabulary));
            count = static_cast<u32>(needed);
            if (count < needed) count += 1.0;
            if (has_top_k && found.key == low) count = min(count, at_low);
        }
        mass = found.above.mass + count * each;
        low = found.key, at_low = count;
    }
    if (low < least) low = least, at_low = infinity;
    Interval kept{low, of_greatest + 1, ALL};
    if (at_low < measure(row, Interval{low, low + 1, ALL}).count) kept.last = nth_at(row, low, at_low);
    return kept;
}

/// The first lane at which `before` and the masses up to its own exceed `target`, or the last with a mass. `before` becomes the mass before
/// that lane. One warp.
DEVICE u32 pick(double mass, double &before, double target) {
    double through = mass;
    UNROLL
    for (u32 distance = 1; distance < 32; distance *= 2) {
        const double of_lower = shuffle(through, (lane() - distance) % 32);
        if (lane() >= distance) through += of_lower;
    }
    const u32 with_mass = ballot(mass > 0.0), beyond = ballot(mass > 0.0 && before + through > target);
    const u32 lowest = beyond & (0u - beyond);
    const u32 chosen = 31 - leading_zeros(beyond ? lowest : with_mass | 1u);
    const double of_lower = shuffle(through, (lane() - 1) % 32);
    before = shuffle(before + (lane() == 0 ? 0.0 : of_lower), chosen);
    return chosen;
}

/// The entry of an interval at which the cumulative mass, in the order of ids, passes `uniform` of the whole. One warp knows it.
DEVICE u32 draw(const Row &row, const Interval &interval, double uniform) {
    const double target = uniform * measure(row, interval).mass;
    if (warp() != 0) return 0;
    u32 segment = 0;
    double before = 0.0, start = 0.0;
    for (u32 first = 0; first < row.segments; first += 32) {
        const double mass = first + lane() < row.segments ? static_cast<double>(row.masses[first + lane()]) : 0.0;
        double of_pick = before;
        const u32 picked = pick(mass, of_pick, target);
        const double all = warp_sum(mass);
        if (all > 0.0) segment = first + picked, start = of_pick;
        before += all;
        if (before > target) break;
    }
    const auto mass_at = [&](u32 id) {
        if (id >= row.vocabulary) return 0.0;
        const float logit = row.logits[id];
        return interval.holds(key_of(logit), id) ? static_cast<double>(row.mass_of(logit)) : 0.0;
    };
    double of_lane = 0.0;
    for (u32 i = 0; i < 32; i++) of_lane += mass_at(segment * SEGMENT + lane() * 32 + i);
    const u32 first = segment * SEGMENT + pick(of_lane, start, target) * 32;
    return first + pick(mass_at(first + lane()), start, target);
}

}  // namespace sample

/// Draws the token of each row and leaves its logit in `log_probs`; a row that has a logit which is not finite gets the token 2^32 - 1.
KERNEL(512, 1) void sample_draw(const SampleDraw args) {
    begin_grid();
    using namespace sample;
    const u32 index = block_index(), segments = ceil_div(args.vocabulary, SEGMENT), states = segments * STATES;
    const Shared<float> maxima = shared<float>(0);
    const Shared<double> masses = (maxima + states).as<double>(), told = masses + segments;
    const Shared<float> list = (told + 4).as<float>();
    const Shared<u32> counts = (list + LISTED).as<u32>();
    Row row{args.logits + index * args.logits_stride, args.vocabulary, segments, 0.0f, 0.0, masses, counts, maxima, list, told};

    const Global<const float> partials = args.partials + static_cast<u64>(index) * states * 4;
    for (u32 i = thread_index(); i < states; i += THREADS) maxima[i] = partials[4 * i];
    sync_block();
    if (warp() == 0) {
        float greatest = LOWEST;
        for (u32 i = lane(); i < states; i += 32) greatest = max(greatest, static_cast<float>(maxima[i]));
        greatest = warp_max(greatest);
        double sum = 0.0;
        bool finite = true;
        for (u32 i = lane(); i < states; i += 32) {
            const auto state = load<4>(partials + 4 * i);
            // An infinite logit makes a difference of infinities, or 0 times one, in its state's weighted sum.
            finite = finite && abs(state[1]) < infinity && abs(state[2]) < infinity;
            sum += static_cast<double>(state[1]) * static_cast<double>(exp(state[0] - greatest));
        }
        sum = warp_sum(sum);
        finite = all(finite);
        if (lane() == 0) {
            told[0] = static_cast<double>(greatest);
            told[1] = finite ? sum : 0.0;
        }
    }
    sync_block();
    row.greatest = static_cast<float>(static_cast<double>(told[0]));
    row.sum = told[1];
    if (row.sum == 0.0) {
        if (thread_index() == 0) args.tokens[index] = ALL;
        return;
    }
    sync_block();

    const Settings settings = settings_of(args.settings + index, args.settings_stride);
    const auto words = random_block(settings.seed, args.stream, settings.sequence, settings.position);
    const u64 bits = static_cast<u64>(words[0]) << 20 | words[1] >> 12;
    const u32 token = draw(row, truncate(row, settings), (static_cast<double>(bits) + 0.5) * (1.0 / 4503599627370496.0));
    if (thread_index() == 0) {
        args.tokens[index] = token;
        args.log_probs[index] = row.logits[token];
    }
}
INSTANCE(sample_draw)
