// y = W (x * kept) + L (R^T (x * dropped)) + b for one token: score, select, and multiply with the kept columns only.
//
// The columns of W are stored one after the other, so those that are left out are not read. Eight of them are added to
// y at a time, so that y, which stays in the nearest cache, is read and written an eighth as often. The first lines of
// the next eight are fetched ahead; the processor's own prefetcher goes on from there. Sums are in float32.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Vectors of the processor's own width: wider ones would go through memory.
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int GROUP = 8, LINE = 64, FLOATS_OF_LINE = LINE / 4;

struct bfloat16 {
    uint16_t bits;
};

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
    uint32_t word = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &word, sizeof wide);
    return wide;
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, bfloat16& out) {  // to the nearest, ties to even, as torch rounds
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    out.bits = std::isnan(x) ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline Floats load(const float* p) {
    Floats out;
    std::memcpy(&out, p, sizeof out);
    return out;
}
inline Floats load(const bfloat16* p) {
    Halves raw;
    std::memcpy(&raw, p, sizeof raw);
    Words words = __builtin_convertvector(raw, Words) << 16;
    Floats out;
    std::memcpy(&out, &words, sizeof out);
    return out;
}
inline void store(float* p, Floats value) { std::memcpy(p, &value, sizeof value); }

// y[from:to] += the sum of R rows, each times its value
template <int R, class T>
inline void add_rows(const T* const* row, const float* value, int64_t from, int64_t to, float* y) {
    int64_t o = from;
    for (; o + LANES <= to; o += LANES) {
        Floats sum = load(y + o);
        for (int r = 0; r < R; r++) sum += value[r] * load(row[r] + o);
        store(y + o, sum);
    }
    for (; o < to; o++)
        for (int r = 0; r < R; r++) y[o] += value[r] * widen(row[r][o]);
}

// y[from:to] += the rows of `matrix` [*, width] named by `index`, each times its value
template <class T>
void add_all(const T* matrix, int64_t width, const int32_t* index, const float* value, int64_t n, int64_t from,
             int64_t to, float* y) {
    const T* row[GROUP];
    int64_t i = 0;
    for (; i + GROUP <= n; i += GROUP) {
        for (int64_t r = i + GROUP; r < i + 2 * GROUP && r < n; r++) {
            const char* next = reinterpret_cast<const char*>(matrix + index[r] * width + from);
            __builtin_prefetch(next);
            __builtin_prefetch(next + LINE);
        }
        for (int r = 0; r < GROUP; r++) row[r] = matrix + index[i + r] * width;
        add_rows<GROUP>(row, value + i, from, to, y);
    }
    for (; i < n; i++) {
        row[0] = matrix + index[i] * width;
        add_rows<1>(row, value + i, from, to, y);
    }
}

// The k-th largest score, found bit by bit: floats that are not negative sort as their bits do.
float kth_largest(const float* score, int64_t n, int64_t k) {
    std::vector<uint32_t> bits(n);
    std::memcpy(bits.data(), score, n * sizeof(uint32_t));
    const uint32_t* p = bits.data();
    uint32_t cut = 0;
    for (int bit = 30; bit >= 0; bit--) {
        uint32_t higher = cut | (1u << bit);
        int32_t count = 0;
        for (int64_t j = 0; j < n; j++) count += p[j] >= higher;
        if (count >= k) cut = higher;
        if (count == k) break;
    }
    float found;
    std::memcpy(&found, &cut, sizeof found);
    return found;
}

struct Scratch {
    std::vector<float> score, value, sums;
    std::vector<int32_t> index;
    void fit(int64_t d_in, int64_t d_out, int64_t rank) {
        if (int64_t(score.size()) < d_in) score.resize(d_in), value.resize(d_in), index.resize(d_in);
        if (int64_t(sums.size()) < d_out + rank) sums.resize(d_out + rank);
    }
};

// What stays the same from token to token. Mirrored in compiled.py.
struct Plan {
    const void* columns;  // [d_in, d_out]
    const void* left;     // [rank, d_out]
    const void* right;    // [d_in, rank]
    int64_t d_in, d_out, rank;
};

// Kept channels to the front of index and value, dropped ones to the back; returns how many are kept.
template <class T>
int64_t select(const T* x, const float* scale, int64_t n, int64_t k, float tau, Scratch& s) {
    float *score = s.score.data(), *value = s.value.data();
    int32_t* index = s.index.data();
    for (int64_t j = 0; j < n; j++) score[j] = std::fabs(widen(x[j]));
    if (scale)
        for (int64_t j = 0; j < n; j++) score[j] *= scale[j];
    int64_t ties = 0;  // how many scores equal to the cut are kept
    if (k == 0) tau = INFINITY;
    if (k > 0) {
        tau = kth_largest(score, n, k), ties = k;
        for (int64_t j = 0; j < n; j++) ties -= !(score[j] <= tau);
    }
    int64_t front = 0, back = n;
    for (int64_t j = 0; j < n; j++) {
        bool keep = !(score[j] <= tau);  // what is not a number is kept, so that it shows
        if (score[j] == tau && ties > 0) keep = true, ties--;
        int64_t at = keep ? front : back - 1;
        front += keep, back -= !keep;
        index[at] = int32_t(j), value[at] = widen(x[j]);
    }
    return front;
}

template <class T>
int64_t multiply(const Plan& plan, const T* x, const float* scale, const T* bias, T* y, int64_t k, float tau,
                 int64_t threads) {
    thread_local Scratch scratch;
    scratch.fit(plan.d_in, plan.d_out, plan.rank);
    const int64_t kept = select(x, scale, plan.d_in, k, tau, scratch), dropped = plan.d_in - kept;
    const int32_t* index = scratch.index.data();
    const float* value = scratch.value.data();
    float *sum = scratch.sums.data(), *inner = sum + plan.d_out;
    std::vector<int32_t> ranks(plan.rank);
    for (int64_t i = 0; i < plan.rank; i++) ranks[i] = int32_t(i);

#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    {
        int64_t part = 0, parts = 1;
#ifdef _OPENMP
        part = omp_get_thread_num(), parts = omp_get_num_threads();
#endif
        // each thread has its own outputs, in whole lines
        auto edge = [&](int64_t n, int64_t i) { return i == parts ? n : n / FLOATS_OF_LINE * i / parts * FLOATS_OF_LINE; };
        if (plan.rank) {
            const int64_t from = edge(plan.rank, part), to = edge(plan.rank, part + 1);
            std::memset(inner + from, 0, (to - from) * sizeof(float));
            add_all(static_cast<const T*>(plan.right), plan.rank, index + kept, value + kept, dropped, from, to, inner);
#pragma omp barrier
        }
        const int64_t from = edge(plan.d_out, part), to = edge(plan.d_out, part + 1);
        for (int64_t o = from; o < to; o++) sum[o] = bias ? widen(bias[o]) : 0.0f;
        add_all(static_cast<const T*>(plan.columns), plan.d_out, index, value, kept, from, to, sum);
        if (plan.rank)
            add_all(static_cast<const T*>(plan.left), plan.d_out, ranks.data(), inner, plan.rank, from, to, sum);
        for (int64_t o = from; o < to; o++) narrow(sum[o], y[o]);
    }
    return kept;
}

// y = W x + b, `weight` [d_out, d_in] read where it lies, from its first number to its last
template <class T>
void dense(const T* weight, const T* x, const T* bias, T* y, int64_t d_in, int64_t d_out, int64_t threads) {
    std::vector<float> in(d_in);
    for (int64_t j = 0; j < d_in; j++) in[j] = widen(x[j]);
#pragma omp parallel for schedule(static) num_threads(int(threads)) if (threads > 1)
    for (int64_t o = 0; o < d_out; o++) {
        const T* row = weight + o * d_in;
        Floats one = {}, two = {};
        int64_t j = 0;
        for (; j + 2 * LANES <= d_in; j += 2 * LANES) {
            one += load(row + j) * load(in.data() + j);
            two += load(row + j + LANES) * load(in.data() + j + LANES);
        }
        one += two;
        float sum = bias ? widen(bias[o]) : 0.0f;
        for (int i = 0; i < LANES; i++) sum += one[i];
        for (; j < d_in; j++) sum += widen(row[j]) * in[j];
        narrow(sum, y[o]);
    }
}

}  // namespace

// The k best channels if k >= 0, else those above tau. `kind` is 0 for float32, 1 for bfloat16. Returns how many.
extern "C" int64_t sparselens_matvec(const Plan* plan, int64_t kind, const void* x, const float* scale,
                                     const void* bias, void* y, int64_t k, float tau, int64_t threads) {
    if (kind == 0)
        return multiply(*plan, static_cast<const float*>(x), scale, static_cast<const float*>(bias),
                        static_cast<float*>(y), k, tau, threads);
    return multiply(*plan, static_cast<const bfloat16*>(x), scale, static_cast<const bfloat16*>(bias),
                    static_cast<bfloat16*>(y), k, tau, threads);
}

// A whole dense layer, weight [d_out, d_in]. `kind` as above.
extern "C" void sparselens_dense(int64_t kind, const void* weight, const void* x, const void* bias, void* y,
                                 int64_t d_in, int64_t d_out, int64_t threads) {
    if (kind == 0)
        dense(static_cast<const float*>(weight), static_cast<const float*>(x), static_cast<const float*>(bias),
              static_cast<float*>(y), d_in, d_out, threads);
    else
        dense(static_cast<const bfloat16*>(weight), static_cast<const bfloat16*>(x),
              static_cast<const bfloat16*>(bias), static_cast<bfloat16*>(y), d_in, d_out, threads);
}
