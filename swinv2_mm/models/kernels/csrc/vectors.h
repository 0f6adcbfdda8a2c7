// Vectors of the widest kind that the compiler may use, and the types of the tensors that they are read from.
//
// The source names no instruction set. It is compiled once for each (AVX-512, AVX2 with FMA, Arm's NEON), in the
// compiler's own vectors of WIDTH numbers; only the conversions from and to float16 name instructions.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, REGISTERS = 32;
#else
constexpr int WIDTH = 4, REGISTERS = 16;
#endif

typedef float V __attribute__((vector_size(4 * WIDTH)));
typedef int32_t VI __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t VU __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t VH __attribute__((vector_size(2 * WIDTH)));

const float INF = __builtin_inff();

// ------------------------------------------------------------------------------------------------------- vectors

template <class T>
inline T read(const void* from) {
    T x;
    memcpy(&x, from, sizeof x);
    return x;
}

inline V get(const float* p) { return read<V>(p); }
inline void put(float* p, V x) { memcpy(p, &x, sizeof x); }
inline V all(float x) { return x - V{}; }  // not V{} + x, which is 0 where x is -0
template <class To, class From>
inline To bits(From x) { return read<To>(&x); }
inline V larger(V x, V y) { return x > y ? x : y; }  // y where x is NaN

// Lane i of the result is lane from(i) of a and b in a row.
template <class Index, size_t... I>
inline V shuffled(V a, V b, Index from, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, from(I)...);
#else
    return __builtin_shuffle(a, b, VI{from(I)...});
#endif
}

using Lanes = std::make_index_sequence<WIDTH>;

template <int apart, class Combine>
inline float folded(V x, Combine combine) {
    if constexpr (apart == 0) return x[0];
    else return folded<apart / 2>(combine(x, shuffled(x, x, [](int i) constexpr { return i ^ apart; }, Lanes{})), combine);
}

inline float sum_of(V x) { return folded<WIDTH / 2>(x, [](V a, V b) { return a + b; }); }
inline float largest_of(V x) { return folded<WIDTH / 2>(x, larger); }

// ---------------------------------------------------------------------------------------------- types of the map

struct Float32 {
    using T = float;
    static V load(const T* p) { return get(p); }
    static void store(T* p, V x) { put(p, x); }
};

struct BFloat16 {
    using T = uint16_t;
    static V load(const T* p) { return bits<V>(__builtin_convertvector(read<VH>(p), VU) << 16); }
    static void store(T* p, V x) {  // to nearest, ties to even
        VU u = bits<VU>(x);
        u = (u + ((u >> 16) & 1) + 0x7fff) >> 16;
        VH half = __builtin_convertvector(x == x ? u : u * 0 + 0x7fc0, VH);
        memcpy(p, &half, sizeof half);
    }
};

struct Float16 {
    using T = uint16_t;
#if defined(__AVX512F__)
    static V load(const T* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
    static void store(T* p, V x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__AVX2__) && defined(__F16C__)
    static V load(const T* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    static void store(T* p, V x) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
    static V load(const T* p) { return bits<V>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))); }
    static void store(T* p, V x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(bits<float32x4_t>(x)))); }
#else
    static V load(const T* p) {
        VU h = __builtin_convertvector(read<VH>(p), VU), sign = (h & 0x8000) << 16;
        // As if the exponent had float32's range; 2^112 makes up for the other bias, for subnormal numbers, too.
        V x = bits<V>((h & 0x7fff) << 13) * bits<V>(VU{} + 0x77800000);
        VU u = bits<VU>(x);
        return bits<V>(((h & 0x7c00) == 0x7c00 ? u | 0x7f800000 : u) | sign);
    }
    static void store(T* p, V x) {  // to nearest, ties to even
        VU u = bits<VU>(x), sign = (u >> 16) & 0x8000;
        u &= 0x7fffffff;
        V y = bits<V>(u);
        VU normal = (u + ((u >> 13) & 1) + 0xfff - 0x38000000) >> 13;
        VU small = bits<VU>(y + 0.5f) - 0x3f000000;  // the addition rounds to multiples of 2^-24
        VU half = u < 0x38800000 ? small : u < 0x477ff000 ? normal : VU{} + 0x7c00;
        half = (y == y ? half : VU{} + 0x7e00) | sign;
        VH narrow = __builtin_convertvector(half, VH);
        memcpy(p, &narrow, sizeof narrow);
    }
#endif
};

// ------------------------------------------------------------------------------------------------------ functions

// exp(x) of x <= 0 to one unit in the last place: 2^n times a polynomial (that of Cephes' expf). NaN stays NaN; what
// would be no normal number is 0.
inline V exponential(V x) {
    const float shift = 12582912.0f;                  // 1.5 * 2^23: adding it rounds to whole numbers
    V n = (x * 1.44269504f + shift) - shift;
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    p = bits<V>(bits<VI>(p) + (__builtin_convertvector(n, VI) << 23));
    return x < -87.0f ? V{} : x == x ? p : x;
}

}  // namespace
