/* Shrink a picture of four bytes a pixel by the mean over area, exactly: every sum is of whole numbers, rounded once.
 *
 * A stored pixel of `width` covers out_width units of width x out_width, a pixel of the answer `width` of them; the
 * weight of a pixel is by how many units the two overlap. So a mean is sum(weight * value) / (width * height) in whole
 * numbers, and the answer is the same on every machine, with whatever vector instructions. (OpenCV's INTER_AREA adds up
 * in single precision, in an order that depends on its build.)
 *
 * Rows first, over whole rows, as that reads memory in order and is the long part: 32 bits hold it, since the weights of
 * a column add up to `height`. Then columns, in doubles, which hold whole numbers to 2^53.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#if SIZE_MAX < UINT64_MAX
#error "a side times a side, and a picture's bytes, need 64 bits; without this extension NumPy shrinks"
#endif

#define CHANNELS 4
#define MOST_STORED 8421504 /* times 255 it fits 32 bits with a sign; area.py has both numbers too */
#define MOST_OUT 32767      /* a weight is at most so much, which must fit 16 bits with a sign */

typedef struct {
    const uint8_t *stored;
    uint8_t *out;
    size_t height, width, out_height, out_width;
} Job;

typedef struct {
    size_t *first; /* column of each pixel of the answer */
    double *weights;
    size_t count; /* of columns a pixel */
} Taps;

/* The units of pixel `place` of `stored` that lie in pixel `to` of `out`. */
static inline size_t weight_of(size_t place, size_t to, size_t stored, size_t out) {
    size_t first = place * out > to * stored ? place * out : to * stored;
    size_t last = (place + 1) * out < (to + 1) * stored ? (place + 1) * out : (to + 1) * stored;
    return last > first ? last - first : 0;
}

/* sums += above_weight * above + below_weight * below, of `count` bytes each. */
static void add_rows(int32_t *sums, const uint8_t *above, int above_weight, const uint8_t *below, int below_weight,
                     size_t count) {
    size_t at = 0;
#ifdef __SSE2__
    const __m128i zero = _mm_setzero_si128();
    const __m128i weights = _mm_set1_epi32((int)((unsigned)below_weight << 16 | (unsigned)above_weight));
    for (; at + 16 <= count; at += 16) {
        __m128i one = _mm_loadu_si128((const __m128i *)(above + at));
        __m128i two = _mm_loadu_si128((const __m128i *)(below + at));
        __m128i low = _mm_unpacklo_epi8(one, two), high = _mm_unpackhi_epi8(one, two);
        __m128i parts[4] = {_mm_unpacklo_epi8(low, zero), _mm_unpackhi_epi8(low, zero), _mm_unpacklo_epi8(high, zero),
                            _mm_unpackhi_epi8(high, zero)};
        for (int part = 0; part < 4; part++) {
            __m128i *place = (__m128i *)(sums + at + 4 * part);
            _mm_storeu_si128(place, _mm_add_epi32(_mm_loadu_si128(place), _mm_madd_epi16(parts[part], weights)));
        }
    }
#endif
    for (; at < count; at++) sums[at] += above_weight * above[at] + below_weight * below[at];
}

/* Write the sums of the rows that one row of the answer covers. */
static void sum_rows(const Job *job, size_t to, int32_t *sums) {
    size_t row_bytes = CHANNELS * job->width;
    size_t row = to * job->height / job->out_height;
    size_t end = ((to + 1) * job->height + job->out_height - 1) / job->out_height;
    memset(sums, 0, row_bytes * sizeof *sums);
    for (; row < end; row += 2) {
        size_t below = row + 1 < end ? row + 1 : row;
        size_t below_weight = below > row ? weight_of(below, to, job->height, job->out_height) : 0;
        add_rows(sums, job->stored + row * row_bytes, (int)weight_of(row, to, job->height, job->out_height),
                 job->stored + below * row_bytes, (int)below_weight, row_bytes);
    }
}

/* Fill in which columns each pixel of the answer takes, and their weights: equally many for all, some of weight 0. */
static void choose_taps(const Job *job, Taps *taps) {
    for (size_t to = 0; to < job->out_width; to++) {
        size_t first = to * job->width / job->out_width;
        if (first + taps->count > job->width) first = job->width - taps->count;
        taps->first[to] = first;
        for (size_t tap = 0; tap < taps->count; tap++)
            taps->weights[to * taps->count + tap] = (double)weight_of(first + tap, to, job->width, job->out_width);
    }
}

/* totals = start + sum(weight * column), for each channel. */
static inline void add_columns(const int32_t *column, const double *weights, size_t count, double start,
                               double *totals) {
#ifdef __SSE2__
    __m128d low = _mm_set1_pd(start), high = low;
    for (size_t tap = 0; tap < count; tap++) {
        __m128i four = _mm_loadu_si128((const __m128i *)(column + CHANNELS * tap));
        __m128d weight = _mm_set1_pd(weights[tap]);
        low = _mm_add_pd(low, _mm_mul_pd(weight, _mm_cvtepi32_pd(four)));
        high = _mm_add_pd(high, _mm_mul_pd(weight, _mm_cvtepi32_pd(_mm_shuffle_epi32(four, 0xee))));
    }
    _mm_storeu_pd(totals, low);
    _mm_storeu_pd(totals + 2, high);
#else
    for (int channel = 0; channel < CHANNELS; channel++) {
        totals[channel] = start;
        for (size_t tap = 0; tap < count; tap++) totals[channel] += weights[tap] * column[CHANNELS * tap + channel];
    }
#endif
}

/* Write one row of the answer: the mean of the sums over the columns of each pixel. */
static void mean_columns(const Job *job, const Taps *taps, const int32_t *sums, uint8_t *out) {
    double area = (double)job->height * (double)job->width;
    /* A quarter more than the half that rounds: no sum ends in a quarter, so nothing hangs on the last bit of 1 / area. */
    double half = area / 2 + 0.25, per_area = 1 / area;
    for (size_t to = 0; to < job->out_width; to++) {
        double totals[CHANNELS];
        add_columns(sums + CHANNELS * taps->first[to], taps->weights + to * taps->count, taps->count, half, totals);
        for (int channel = 0; channel < CHANNELS; channel++)
            out[CHANNELS * to + channel] = (uint8_t)(totals[channel] * per_area);
    }
}

static int shrink_picture(const Job *job) {
    Taps taps = {.count = (job->width + job->out_width - 1) / job->out_width + 1};
    if (taps.count > job->width) taps.count = job->width;
    taps.weights = malloc(job->out_width * taps.count * sizeof *taps.weights);
    taps.first = malloc(job->out_width * sizeof *taps.first);
    int32_t *sums = malloc(CHANNELS * job->width * sizeof *sums);
    int failed = taps.weights == NULL || taps.first == NULL || sums == NULL;
    if (!failed) {
        choose_taps(job, &taps);
        for (size_t to = 0; to < job->out_height; to++) {
            sum_rows(job, to, sums);
            mean_columns(job, &taps, sums, job->out + to * CHANNELS * job->out_width);
        }
    }
    free(taps.weights);
    free(taps.first);
    free(sums);
    return failed;
}

static PyObject *shrink(PyObject *module, PyObject *args) {
    Py_buffer stored, out;
    unsigned int height, width, out_height, out_width;
    int failed;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*(II)w*(II)", &stored, &height, &width, &out, &out_height, &out_width)) return NULL;
    PyObject *answer = NULL;
    Job job = {stored.buf, out.buf, height, width, out_height, out_width};
    if (out_height < 1 || out_width < 1 || out_height > height || out_width > width || height > MOST_STORED ||
        width > MOST_STORED || out_height > MOST_OUT || out_width > MOST_OUT) {
        PyErr_Format(PyExc_ValueError, "%u x %u pixels cannot be shrunk to %u x %u", width, height, out_width,
                     out_height);
    } else if ((size_t)stored.len != CHANNELS * job.height * job.width ||
               (size_t)out.len != CHANNELS * job.out_height * job.out_width) {
        PyErr_SetString(PyExc_ValueError, "a picture has another number of bytes than its size says");
    } else {
        Py_BEGIN_ALLOW_THREADS
        failed = shrink_picture(&job);
        Py_END_ALLOW_THREADS
        answer = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
    }
    PyBuffer_Release(&stored);
    PyBuffer_Release(&out);
    return answer;
}

static PyMethodDef methods[] = {
    {"shrink", shrink, METH_VARARGS,
     "shrink(stored, (height, width), out, (out_height, out_width)): write the mean over area, four bytes a pixel.\n\n"
     "Both are contiguous. Raises ValueError unless each side of the answer is at most that of the stored picture."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_area", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__area(void) { return PyModuleDef_Init(&definition); }
