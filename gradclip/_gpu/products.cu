/* Products of float32 elements as `product` rounds them, in float64 and then in float32, without float64. The factor is first + second,
 * to 2**-48 of it. A product is p + s to 2**-46 of it, and q + rest, with q rounded. Where `rest` is not within 2**-18 of half a place
 * of q, q is what both roundings give. */
struct Products {
    float first, second;
    bool can; /* whether no part of a usual product underflows */

    __device__ Products(double factor)
    {
        first = to_f32(factor);
        second = to_f32(factor - widen(first));
        can = fabs(factor) > 0x1p-60 && fabs(factor) < 0x1p60;
    }

    /* A product; *sure becomes false where it may be another one. */
    __device__ u32 operator()(u32 x, bool *sure) const
    {
        const float y = __uint_as_float(x), p = times_f32(y, first), s = fma_f32(y, second, fma_f32(y, first, -p)),
                    q = plus_f32(p, s), rest = minus_f32(s, minus_f32(q, p));
        const bool known = fma_f32(rest, 1 + 0x1p-18f, q) == q && fabsf(q) > 0x1p-100f;
        const bool zero = x << 1 == 0;
        *sure = *sure && (known || zero);
        return bits_of(zero ? p : q); /* p has the sign of a zero */
    }
};

/* A pack times a factor; false where float64 is needed for one of them. */
template <class T>
__device__ bool multiply_pack(typename T::bits *x, const Products &products)
{
    typename T::bits y[T::PACK];
    bool sure = products.can;
#pragma unroll
    for (int k = 0; k < T::PACK; k++)
        y[k] = products(x[k], &sure);
#pragma unroll
    for (int k = 0; k < T::PACK; k++)
        x[k] = sure ? y[k] : x[k];
    return sure;
}
