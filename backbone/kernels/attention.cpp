// Attention over packed rows for CPUs: each row sees its own tokens and its own prefix, nothing else.
//
// Softmax attention (Vaswani et al. 2017, eq. 1) computed in float32 from float32 or bfloat16 states. Rows lie one
// after another in a line of tokens, prefixes wherever they are in memory: nothing is padded, gathered or copied but
// the keys and values of the one head that is being worked on. Vectors are the compiler's own (GCC and Clang), so that
// one source serves every processor.
//
// A NaN or an infinity stays in its row: no other row's memory is read for it. It is never hidden either: the flags
// this file is compiled with must not assume finite numbers.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kLanes = 16;  // floats in a vector
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));
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

inline Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

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

namespace {

// Keys [head_dim, keys] and values [keys, head_dim padded to whole vectors] of one head, and the scores of a few queries.
struct Scratch {
    std::vector<float> keys, values, queries, scores;
};

template <int64_t kVectors, typename T>
struct Head {
    static constexpr int64_t kWidth = kVectors * kLanes;
    // As many queries at a time as keep the accumulators in registers.
    static constexpr int64_t kBlock = kVectors <= 2 ? 4 : kVectors <= 4 ? 3 : 2;

    const Rows& in;
    Scratch& scratch;

    // Attention of one row's queries to one key-value head.
    void run(int64_t row, int64_t kv_head) {
        const int64_t begin = in.starts[row], length = in.starts[row + 1] - begin;
        const int64_t prefix = in.prefix_lengths[row], total = prefix + length;
        const int64_t padded = (total + kLanes - 1) / kLanes * kLanes;
        scratch.keys.assign(in.head_dim * padded, 0.0f);
        scratch.values.assign(total * kWidth, 0.0f);
        scratch.queries.resize(kBlock * in.head_dim);
        scratch.scores.resize(kBlock * padded);
        const int64_t stride = in.kv_heads * in.head_dim;
        const T* own = reinterpret_cast<const T*>(in.prefix_keys[row]);
        for (int64_t at = 0; at < prefix; ++at) put_key(own + at * stride + kv_head * in.head_dim, at, padded);
        own = reinterpret_cast<const T*>(in.prefix_values[row]);
        for (int64_t at = 0; at < prefix; ++at) put_value(own + at * stride + kv_head * in.head_dim, at);
        const T* key = static_cast<const T*>(in.key) + begin * in.key_token + kv_head * in.key_head;
        const T* value = static_cast<const T*>(in.value) + begin * in.value_token + kv_head * in.value_head;
        for (int64_t at = 0; at < length; ++at) put_key(key + at * in.key_token, prefix + at, padded);
        for (int64_t at = 0; at < length; ++at) put_value(value + at * in.value_token, prefix + at);

        const int64_t shared = in.heads / in.kv_heads;  // query heads that read this key-value head
        for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
            for (int64_t first = 0; first < length; first += kBlock) {
                const int64_t count = std::min(kBlock, length - first);
                // A short block repeats its last query, whose answer is written once.
                for (int64_t nth = 0; nth < kBlock; ++nth) {
                    const int64_t token = begin + first + std::min(nth, count - 1);
                    const T* query =
                        static_cast<const T*>(in.query) + token * in.query_token + head * in.query_head;
                    float* to = scratch.queries.data() + nth * in.head_dim;
                    for (int64_t d = 0; d < in.head_dim; ++d) to[d] = widen(query[d]) * in.scaling;
                }
                score(padded);
                Vec sums[kBlock];
                for (int64_t nth = 0; nth < kBlock; ++nth) {
                    const int64_t place = first + std::min(nth, count - 1);
                    sums[nth] = weigh(scratch.scores.data() + nth * padded, place, prefix, length, padded);
                }
                mix(begin + first, head, count, total, padded, sums);
            }
        }
    }

 private:
    void put_key(const T* from, int64_t at, int64_t padded) {
        float* to = scratch.keys.data() + at;
        for (int64_t d = 0; d < in.head_dim; ++d) to[d * padded] = widen(from[d]);
    }

    void put_value(const T* from, int64_t at) {
        float* to = scratch.values.data() + at * kWidth;
        for (int64_t d = 0; d < in.head_dim; ++d) to[d] = widen(from[d]);
    }

    // scores[nth][key] = query · key, for a block of queries.
    void score(int64_t padded) {
        for (int64_t at = 0; at < padded; at += kLanes) {
            Vec sum[kBlock] = {};
            const float* keys = scratch.keys.data() + at;
            const float* query = scratch.queries.data();
            for (int64_t d = 0; d < in.head_dim; ++d) {
                const Vec key = load(keys + d * padded);
                for (int64_t nth = 0; nth < kBlock; ++nth) sum[nth] += query[nth * in.head_dim + d] * key;
            }
            for (int64_t nth = 0; nth < kBlock; ++nth) store(scratch.scores.data() + nth * padded + at, sum[nth]);
        }
    }

    // Turn one query's scores into weights that are not divided by their sum yet; returns that sum, lane by lane.
    Vec weigh(float* scores, int64_t place, int64_t prefix, int64_t length, int64_t padded) {
        constexpr float kNever = -std::numeric_limits<float>::infinity();
        const int64_t last = in.causal ? place + 1 : in.window ? std::min(length, place + in.window) : length;
        const int64_t first = in.window ? std::max<int64_t>(0, place - in.window + 1) : 0;
        std::fill(scores + prefix, scores + prefix + first, kNever);
        std::fill(scores + prefix + last, scores + padded, kNever);
        Vec most = load(scores);
        for (int64_t at = kLanes; at < padded; at += kLanes) {
            const Vec other = load(scores + at);
            most = other > most ? other : most;
        }
        float greatest = kNever;
        for (int64_t lane = 0; lane < kLanes; ++lane) greatest = std::max(greatest, most[lane]);
        Vec sum = {};
        for (int64_t at = 0; at < padded; at += kLanes) {
            const Vec score = load(scores + at);
            Vec weight = exponential(score - greatest);
            weight = score == kNever ? Vec{} : weight;  // exactly nothing of what is not seen
            store(scores + at, weight);
            sum += weight;
        }
        return sum;
    }

    // output[query] = Σ weight · value / Σ weight.
    void mix(int64_t token, int64_t head, int64_t count, int64_t total, int64_t padded, const Vec* sums) {
        Vec mixed[kBlock][kVectors] = {};
        const float* weights = scratch.scores.data();
        for (int64_t key = 0; key < total; ++key) {
            const float* value = scratch.values.data() + key * kWidth;
            for (int64_t part = 0; part < kVectors; ++part) {
                const Vec own = load(value + part * kLanes);
                for (int64_t nth = 0; nth < kBlock; ++nth) mixed[nth][part] += weights[nth * padded + key] * own;
            }
        }
        for (int64_t nth = 0; nth < count; ++nth) {
            float whole = 0.0f;
            for (int64_t lane = 0; lane < kLanes; ++lane) whole += sums[nth][lane];
            T* to = static_cast<T*>(in.output) + ((token + nth) * in.heads + head) * in.head_dim;
            float result[kWidth];
            for (int64_t part = 0; part < kVectors; ++part) store(result + part * kLanes, mixed[nth][part] / whole);
            for (int64_t d = 0; d < in.head_dim; ++d) narrow(result[d], to + d);
        }
    }
};

template <int64_t kVectors, typename T>
void attend(const Rows& in) {
    const int64_t units = in.rows * in.kv_heads;
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        Scratch scratch;
        Head<kVectors, T> head{in, scratch};
        for (int64_t unit = next++; unit < units; unit = next++) head.run(unit / in.kv_heads, unit % in.kv_heads);
    };
    std::vector<std::thread> others;
    for (int32_t nth = 1; nth < in.threads; ++nth) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
}

template <typename T>
int dispatch(const Rows& in) {
    switch ((in.head_dim + kLanes - 1) / kLanes) {
        case 1: attend<1, T>(in); return 0;
        case 2: attend<2, T>(in); return 0;
        case 3: attend<3, T>(in); return 0;
        case 4: attend<4, T>(in); return 0;
        case 5: attend<5, T>(in); return 0;
        case 6: attend<6, T>(in); return 0;
        case 7: attend<7, T>(in); return 0;
        case 8: attend<8, T>(in); return 0;
        default: return 1;  // no head of a known model is wider than 128
    }
}

}  // namespace

extern "C" int packed_attention_float32(const Rows* rows) { return dispatch<float>(*rows); }
extern "C" int packed_attention_bfloat16(const Rows* rows) { return dispatch<BFloat16>(*rows); }
