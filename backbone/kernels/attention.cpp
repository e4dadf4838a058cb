// Attention over packed rows for CPUs: each row sees its own tokens and its own prefix, nothing else.
//
// Softmax attention (Vaswani et al. 2017, eq. 1) and its gradients, computed in float32 from float32 or bfloat16
// states. Rows lie one after another in a line of tokens, prefixes wherever they are in memory: nothing is padded,
// gathered or copied but the keys and values of the one head that is being worked on. The gradients need no weights
// kept: they are made again from the states and each query's log-sum-exp (Dao et al. 2022, section 3.1). Vectors are
// the compiler's own (GCC and Clang), so that one source serves every processor.
//
// A NaN or an infinity stays in its row: no other row's memory is read for it. It is never hidden either: the flags
// this file is compiled with must not assume finite numbers.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kLanes = 16;  // floats in a vector
constexpr int64_t kVectorsOfHead = VECTORS;  // compiled for one width of heads: all of them would take half a minute
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4)));

struct BFloat16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void narrow(float value, float* to) { *to = value; }

inline void narrow(float value, BFloat16* to) {  // to the nearest, ties to even; a NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

// Not by memcpy: where the compiler prefers half vectors it copies in halves through the stack, and the whole vector
// that is then read from there waits for both (three times the time of all of this, on a processor with AMX).
inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }

inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }

// e^x for x <= 0, to about 1e-7: e^x = 2^n e^r with |r| <= ln 2 / 2, and a polynomial of degree 6 for e^r.
inline Vec exponential(Vec x) {
    x = x < -87.0f ? Vec{} - 87.0f : x;  // a NaN is not smaller, and passes
    const Ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, Ints);  // x <= 0: truncation rounds to nearest
    const Vec whole = __builtin_convertvector(n, Vec);
    const Vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec y = r * 1.38888889e-3f + 8.33333333e-3f;
    y = y * r + 4.16666667e-2f;
    y = y * r + 1.66666667e-1f;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const Ints power = (n + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    return y * scale;
}

}  // namespace

// What Python hands over; `backbone/native.py` declares the same fields in the same order.
extern "C" struct Rows {
    const void *query, *key, *value;  // first token, first head; the last dimension is contiguous
    void* output;                     // [tokens, heads, head_dim], contiguous
    float* logsumexp;                 // [tokens, heads] of the scaled scores; null where nobody asks
    int64_t query_token, query_head;  // strides in elements
    int64_t key_token, key_head;
    int64_t value_token, value_head;
    int64_t rows, heads, kv_heads, head_dim;
    const int64_t* starts;          // [rows + 1] where each row begins in the line
    const int64_t* prefix_lengths;  // [rows]
    const uint64_t* prefix_keys;    // [rows] addresses of [length, kv_heads, head_dim], contiguous
    const uint64_t* prefix_values;  // [rows]
    float scaling;
    int32_t causal;
    int64_t window;  // keys at a distance below it are seen; 0: all are
    int32_t threads;
};

// What the gradients are made from besides, and where they go. All are contiguous.
extern "C" struct Gradients {
    const void* output_gradient;            // [tokens, heads, head_dim]
    void *query, *key, *value;              // [tokens, heads or kv_heads, head_dim]
    float *prefix_key, *prefix_value;       // [prefix tokens, kv_heads, head_dim], added to
    const int64_t* prefix_starts;           // [rows] where each row's prefix begins among the prefix tokens
};

namespace {

// One head of one row in float32. "Turned" is [head_dim, keys]; straight is [keys, head_dim padded to whole vectors].
struct Scratch {
    std::vector<float> turned_keys, values, turned_values, keys;  // the last two for gradients only
    std::vector<float> key_gradients, value_gradients;
    std::vector<float> queries, scores, output_gradients, products;  // of a block of queries
};

template <int64_t kVectors, typename T>
struct Head {
    static constexpr int64_t kWidth = kVectors * kLanes;
    // As many queries at a time as keep the accumulators in registers.
    static constexpr int64_t kBlock = kVectors <= 2 ? 4 : kVectors <= 4 ? 3 : 2;

    const Rows& in;
    Scratch& scratch;
    // The row at work.
    int64_t begin = 0, length = 0, prefix = 0, total = 0, padded = 0;

    // Attention of one row's queries to one key-value head.
    void forward(int64_t row, int64_t kv_head) {
        take(row);
        scratch.scores.resize(kBlock * padded);
        turn(keys_of(row, kv_head), scratch.turned_keys);
        straighten(values_of(row, kv_head), scratch.values);
        for_each_block(kv_head, [&](int64_t head, int64_t first, int64_t count) {
            take_queries(head, first, count);
            multiply(scratch.queries, scratch.turned_keys, scratch.scores);
            for (int64_t nth = 0; nth < count; ++nth) {
                float* scores = scratch.scores.data() + nth * padded;
                const int64_t token = begin + first + nth;
                hide(scores, first + nth);
                const float greatest = most(scores), sum = weigh(scores, greatest);
                if (in.logsumexp) in.logsumexp[token * in.heads + head] = greatest + std::log(sum);
                scale(scores, 1.0f / sum);
            }
            mix(scratch.scores, scratch.values, count, static_cast<T*>(in.output), first, head, 1.0f);
        });
    }

    // Gradients of one row and one key-value head; `out` collects them.
    void backward(int64_t row, int64_t kv_head, const Gradients& out) {
        take(row);
        scratch.scores.resize(kBlock * padded);
        scratch.products.resize(kBlock * padded);
        scratch.key_gradients.assign(total * kWidth, 0.0f);
        scratch.value_gradients.assign(total * kWidth, 0.0f);
        turn(keys_of(row, kv_head), scratch.turned_keys);
        straighten(keys_of(row, kv_head), scratch.keys);
        turn(values_of(row, kv_head), scratch.turned_values);
        for_each_block(kv_head, [&](int64_t head, int64_t first, int64_t count) {
            take_queries(head, first, count);
            const T* given = static_cast<const T*>(out.output_gradient);
            take_block(given, in.heads * in.head_dim, in.head_dim, head, first, count, 1.0f, scratch.output_gradients);
            multiply(scratch.queries, scratch.turned_keys, scratch.scores);
            multiply(scratch.output_gradients, scratch.turned_values, scratch.products);
            for (int64_t nth = 0; nth < count; ++nth) {
                float* scores = scratch.scores.data() + nth * padded;
                const int64_t token = begin + first + nth;
                hide(scores, first + nth);
                weigh(scores, in.logsumexp[token * in.heads + head]);
                // D of Dao et al. 2022, eq. 4: the output and its gradient, multiplied.
                const T* output = static_cast<const T*>(in.output) + (token * in.heads + head) * in.head_dim;
                const float* gradient = scratch.output_gradients.data() + nth * in.head_dim;
                float both = 0.0f;
                for (int64_t d = 0; d < in.head_dim; ++d) both += widen(output[d]) * gradient[d];
                float* products = scratch.products.data() + nth * padded;
                for (int64_t at = 0; at < padded; at += kLanes) {
                    store(products + at, load(scores + at) * (load(products + at) - both));
                }
            }
            collect(scratch.scores, scratch.output_gradients, count, scratch.value_gradients);
            collect(scratch.products, scratch.queries, count, scratch.key_gradients);
            mix(scratch.products, scratch.keys, count, static_cast<T*>(out.query), first, head, in.scaling);
        });
        put_gradients(scratch.key_gradients, static_cast<T*>(out.key), out.prefix_key, row, kv_head, out);
        put_gradients(scratch.value_gradients, static_cast<T*>(out.value), out.prefix_value, row, kv_head, out);
    }

 private:
    // States of one head, those of the prefix and those of the row: first one and stride in elements.
    struct States {
        const T *prefix, *own;
        int64_t prefix_stride, own_stride;
    };

    void take(int64_t row) {
        begin = in.starts[row];
        length = in.starts[row + 1] - begin;
        prefix = in.prefix_lengths[row];
        total = prefix + length;
        padded = (total + kLanes - 1) / kLanes * kLanes;
        if (padded % 256 == 0) padded += kLanes;  // lines a power of two apart would push each other out of the cache
    }

    States keys_of(int64_t row, int64_t kv_head) const {
        return {reinterpret_cast<const T*>(in.prefix_keys[row]) + kv_head * in.head_dim,
                static_cast<const T*>(in.key) + begin * in.key_token + kv_head * in.key_head,
                in.kv_heads * in.head_dim, in.key_token};
    }

    States values_of(int64_t row, int64_t kv_head) const {
        return {reinterpret_cast<const T*>(in.prefix_values[row]) + kv_head * in.head_dim,
                static_cast<const T*>(in.value) + begin * in.value_token + kv_head * in.value_head,
                in.kv_heads * in.head_dim, in.value_token};
    }

    const T* state(const States& from, int64_t at) const {
        return at < prefix ? from.prefix + at * from.prefix_stride : from.own + (at - prefix) * from.own_stride;
    }

    void turn(const States& from, std::vector<float>& to) const {
        to.assign(in.head_dim * padded, 0.0f);
        for (int64_t at = 0; at < total; ++at) {
            const T* one = state(from, at);
            for (int64_t d = 0; d < in.head_dim; ++d) to[d * padded + at] = widen(one[d]);
        }
    }

    void straighten(const States& from, std::vector<float>& to) const {
        to.assign(total * kWidth, 0.0f);
        for (int64_t at = 0; at < total; ++at) {
            const T* one = state(from, at);
            for (int64_t d = 0; d < in.head_dim; ++d) to[at * kWidth + d] = widen(one[d]);
        }
    }

    // Every query head that reads this key-value head, a few queries at a time.
    template <typename Work>
    void for_each_block(int64_t kv_head, Work work) const {
        const int64_t shared = in.heads / in.kv_heads;
        for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
            for (int64_t first = 0; first < length; first += kBlock) work(head, first, std::min(kBlock, length - first));
        }
    }

    void take_queries(int64_t head, int64_t first, int64_t count) {
        const T* from = static_cast<const T*>(in.query);
        take_block(from, in.query_token, in.query_head, head, first, count, in.scaling, scratch.queries);
    }

    // Widen a block of states; a short one repeats its last, and nobody reads what comes of that.
    void take_block(const T* from, int64_t token_stride, int64_t head_stride, int64_t head, int64_t first,
                    int64_t count, float factor, std::vector<float>& to) const {
        to.resize(kBlock * in.head_dim);
        for (int64_t nth = 0; nth < kBlock; ++nth) {
            const T* one = from + (begin + first + std::min(nth, count - 1)) * token_stride + head * head_stride;
            for (int64_t d = 0; d < in.head_dim; ++d) to[nth * in.head_dim + d] = widen(one[d]) * factor;
        }
    }

    // products[nth][key] = block[nth] · turned[key].
    void multiply(const std::vector<float>& block, const std::vector<float>& turned, std::vector<float>& products) const {
        for (int64_t at = 0; at < padded; at += kLanes) {
            Vec sum[kBlock] = {};
            const float* keys = turned.data() + at;
            const float* states = block.data();
            for (int64_t d = 0; d < in.head_dim; ++d) {
                const Vec key = load(keys + d * padded);
                for (int64_t nth = 0; nth < kBlock; ++nth) sum[nth] += states[nth * in.head_dim + d] * key;
            }
            for (int64_t nth = 0; nth < kBlock; ++nth) store(products.data() + nth * padded + at, sum[nth]);
        }
    }

    static constexpr float kNever = -std::numeric_limits<float>::infinity();

    // Nothing is seen behind the row's end, ahead of a causal query, or outside its window; a prefix always is.
    void hide(float* scores, int64_t place) const {
        int64_t last = in.causal ? place + 1 : length;
        if (in.window) last = std::min(last, place + in.window);
        const int64_t first = in.window ? std::max<int64_t>(0, place - in.window + 1) : 0;
        std::fill(scores + prefix, scores + prefix + first, kNever);
        std::fill(scores + prefix + last, scores + padded, kNever);
    }

    float most(const float* scores) const {
        Vec highest = load(scores);
        for (int64_t at = kLanes; at < padded; at += kLanes) {
            const Vec other = load(scores + at);
            highest = other > highest ? other : highest;
        }
        float greatest = kNever;
        for (int64_t lane = 0; lane < kLanes; ++lane) greatest = std::max(greatest, highest[lane]);
        return greatest;
    }

    // Turn scores into e^(score − above); returns their sum.
    float weigh(float* scores, float above) const {
        Vec sums = {};
        for (int64_t at = 0; at < padded; at += kLanes) {
            const Vec score = load(scores + at);
            Vec weight = exponential(score - above);
            weight = score == kNever ? Vec{} : weight;  // exactly nothing of what is not seen
            store(scores + at, weight);
            sums += weight;
        }
        float sum = 0.0f;
        for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
        return sum;
    }

    void scale(float* scores, float factor) const {
        for (int64_t at = 0; at < padded; at += kLanes) store(scores + at, load(scores + at) * factor);
    }

    // to[token] = factor · Σ weight · state, over the keys.
    void mix(const std::vector<float>& weights, const std::vector<float>& states, int64_t count, T* to, int64_t first,
             int64_t head, float factor) const {
        Vec mixed[kBlock][kVectors] = {};
        for (int64_t key = 0; key < total; ++key) {
            const float* state = states.data() + key * kWidth;
            for (int64_t part = 0; part < kVectors; ++part) {
                const Vec own = load(state + part * kLanes);
                for (int64_t nth = 0; nth < kBlock; ++nth) mixed[nth][part] += weights[nth * padded + key] * own;
            }
        }
        for (int64_t nth = 0; nth < count; ++nth) {
            float result[kWidth];
            for (int64_t part = 0; part < kVectors; ++part) store(result + part * kLanes, mixed[nth][part] * factor);
            T* token = to + ((begin + first + nth) * in.heads + head) * in.head_dim;
            for (int64_t d = 0; d < in.head_dim; ++d) narrow(result[d], token + d);
        }
    }

    // into[key] += Σ weight · state, over a block of queries.
    void collect(const std::vector<float>& weights, const std::vector<float>& block, int64_t count,
                 std::vector<float>& into) const {
        float wide[kBlock][kWidth] = {};
        for (int64_t nth = 0; nth < count; ++nth) {  // those behind `count` add nothing
            std::copy_n(block.data() + nth * in.head_dim, in.head_dim, wide[nth]);
        }
        Vec states[kBlock][kVectors];
        for (int64_t nth = 0; nth < kBlock; ++nth) {
            for (int64_t part = 0; part < kVectors; ++part) states[nth][part] = load(wide[nth] + part * kLanes);
        }
        for (int64_t key = 0; key < total; ++key) {
            float* to = into.data() + key * kWidth;
            for (int64_t part = 0; part < kVectors; ++part) {
                Vec sum = load(to + part * kLanes);
                for (int64_t nth = 0; nth < count; ++nth) sum += weights[nth * padded + key] * states[nth][part];
                store(to + part * kLanes, sum);
            }
        }
    }

    void put_gradients(const std::vector<float>& from, T* own, float* prefixes, int64_t row, int64_t kv_head,
                       const Gradients& out) const {
        const int64_t stride = in.kv_heads * in.head_dim;
        for (int64_t at = 0; at < prefix; ++at) {
            float* to = prefixes + (out.prefix_starts[row] + at) * stride + kv_head * in.head_dim;
            for (int64_t d = 0; d < in.head_dim; ++d) to[d] += from[at * kWidth + d];
        }
        for (int64_t at = 0; at < length; ++at) {
            T* to = own + (begin + at) * stride + kv_head * in.head_dim;
            for (int64_t d = 0; d < in.head_dim; ++d) narrow(from[(prefix + at) * kWidth + d], to + d);
        }
    }
};

// Call `unit` with each number below `units`, on so many threads.
template <typename Unit>
void spread(int64_t units, int32_t threads, Unit unit) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        try {
            Scratch scratch;
            for (int64_t at = next++; at < units; at = next++) unit(at, scratch);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t nth = 1; nth < std::min<int64_t>(threads, units); ++nth) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
    }
    work();
    for (std::thread& other : others) other.join();
    if (failed) throw std::bad_alloc();
}

template <int64_t kVectors, typename T>
void attend(const Rows& in, const Gradients* out) {
    if (!out) {
        spread(in.rows * in.kv_heads, in.threads, [&](int64_t at, Scratch& scratch) {
            Head<kVectors, T>{in, scratch}.forward(at / in.kv_heads, at % in.kv_heads);
        });
        return;
    }
    // A thread takes a head of all rows: rows of one task add to the same prefix's gradients.
    spread(in.kv_heads, in.threads, [&](int64_t kv_head, Scratch& scratch) {
        for (int64_t row = 0; row < in.rows; ++row) Head<kVectors, T>{in, scratch}.backward(row, kv_head, *out);
    });
}

// 0: done; 1: no memory. No exception may cross the border to Python.
template <typename T>
int guarded(const Rows& in, const Gradients* out) {
    try {
        attend<kVectorsOfHead, T>(in, out);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

// Where `gradients` is null the rows' outputs are made; else the gradients, from the outputs that were.
extern "C" int packed_attention_float32(const Rows* rows, const Gradients* gradients) {
    return guarded<float>(*rows, gradients);
}
extern "C" int packed_attention_bfloat16(const Rows* rows, const Gradients* gradients) {
    return guarded<BFloat16>(*rows, gradients);
}
