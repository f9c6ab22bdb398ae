/* Decode the rows and columns of a JPEG that a window needs, to four bytes a pixel, bit for bit as the whole would be.
 *
 * libjpeg-turbo is found at run time (the one that Pillow's wheel carries), so building needs a C compiler only. Its
 * ABI is checked by jpeg_CreateDecompress: version 62 and the size of the struct.
 *
 * Three things that bite. Rows are skipped from row 0 only, to a whole row of MCUs, one more of which is decoded and
 * dropped: skipping off that grid gives stale rows (libjpeg-turbo #915). Columns keep a margin of an MCU, because the
 * chroma of the edge is interpolated from its neighbour. And decoding stops with the last row of the window: those below
 * are never looked at. Every fault, warnings too, ends by longjmp, and the caller gets its text.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <dlfcn.h>
#include <setjmp.h>
#include <stdio.h>

#include "libjpeg-turbo/jpeglib.h"

#define ABI 62

static struct {
    struct jpeg_error_mgr *(*std_error)(struct jpeg_error_mgr *);
    void (*create)(j_decompress_ptr, int, size_t);
    void (*destroy)(j_decompress_ptr);
    void (*mem_src)(j_decompress_ptr, const unsigned char *, unsigned long);
    int (*read_header)(j_decompress_ptr, boolean);
    boolean (*start)(j_decompress_ptr);
    JDIMENSION (*read)(j_decompress_ptr, JSAMPARRAY, JDIMENSION);
    JDIMENSION (*skip)(j_decompress_ptr, JDIMENSION);
    void (*crop)(j_decompress_ptr, JDIMENSION *, JDIMENSION *);
    boolean (*finish)(j_decompress_ptr);
} lib;
static int is_open = 0;

typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg hands back a pointer to it */
    jmp_buf back;
    char text[JMSG_LENGTH_MAX];
} Fault;

typedef struct {
    const unsigned char *data;
    size_t data_bytes;
    unsigned char *out;
    size_t out_bytes;
    JDIMENSION stored_height, stored_width;
    JDIMENSION top, left, height, width; /* of the window, in pixels of the scaled picture */
    int denominator;
    JDIMENSION out_left, out_width; /* the answer: which columns the rows of `out` hold */
} Job;

static void leave(j_common_ptr cinfo) {
    Fault *fault = (Fault *)cinfo->err;
    cinfo->err->format_message(cinfo, fault->text);
    longjmp(fault->back, 1);
}

static void warn(j_common_ptr cinfo, int level) {
    if (level < 0) leave(cinfo);
}

static void silent(j_common_ptr cinfo) { (void)cinfo; }

static void catch_faults(j_decompress_ptr cinfo, Fault *fault) {
    cinfo->err = lib.std_error(&fault->base);
    fault->base.error_exit = leave;
    fault->base.emit_message = warn;
    fault->base.output_message = silent;
    fault->text[0] = 0;
}

static void refuse(Fault *fault, const char *why) {
    snprintf(fault->text, sizeof fault->text, "%s", why);
    longjmp(fault->back, 1);
}

static void read_region(j_decompress_ptr cinfo, Fault *fault, Job *job) {
    lib.mem_src(cinfo, job->data, job->data_bytes);
    lib.read_header(cinfo, TRUE);
    if (cinfo->image_height != job->stored_height || cinfo->image_width != job->stored_width)
        refuse(fault, "another size than its header's");
    if (cinfo->jpeg_color_space != JCS_YCbCr && cinfo->jpeg_color_space != JCS_GRAYSCALE &&
        cinfo->jpeg_color_space != JCS_RGB)
        refuse(fault, "other colours");
    cinfo->out_color_space = JCS_EXT_RGBX;
    cinfo->dct_method = JDCT_ISLOW;
    cinfo->do_fancy_upsampling = TRUE;
    cinfo->scale_num = 1;
    cinfo->scale_denom = (unsigned int)job->denominator;
    lib.start(cinfo);
    if (job->height < 1 || job->width < 1 || job->top + job->height > cinfo->output_height ||
        job->left + job->width > cinfo->output_width)
        refuse(fault, "the window is not in the picture");

    JDIMENSION mcu_width = 8 * (JDIMENSION)cinfo->max_h_samp_factor / (JDIMENSION)job->denominator;
    JDIMENSION mcu_height = 8 * (JDIMENSION)cinfo->max_v_samp_factor / (JDIMENSION)job->denominator;
    JDIMENSION margin = mcu_width < 16 ? 16 : mcu_width;
    JDIMENSION first = job->left < margin ? 0 : job->left - margin;
    JDIMENSION last = job->left + job->width + margin;
    JDIMENSION whole = cinfo->output_width, across;
    if (last > whole) last = whole;
    across = last - first;
    if (across < whole) lib.crop(cinfo, &first, &across);
    else first = 0;
    job->out_left = first;
    job->out_width = cinfo->output_width;
    if (first > job->left || first + cinfo->output_width < job->left + job->width ||
        (size_t)job->height * cinfo->output_width * 4 > job->out_bytes)
        refuse(fault, "the window does not fit");

    JDIMENSION above = job->top / mcu_height;
    if (above > 1 && lib.skip(cinfo, (above - 1) * mcu_height) != (above - 1) * mcu_height)
        refuse(fault, "rows could not be skipped");
    while (cinfo->output_scanline < job->top + job->height) {
        JDIMENSION row = cinfo->output_scanline < job->top ? 0 : cinfo->output_scanline - job->top;
        JSAMPROW place = job->out + (size_t)row * cinfo->output_width * 4;
        if (lib.read(cinfo, &place, 1) != 1) refuse(fault, "rows are missing");
    }
    /* With the last row decoded, looking for the end costs nothing, and a fault there is named as ever. */
    if (cinfo->output_scanline == cinfo->output_height) lib.finish(cinfo);
}

/* Return 0, or 1 with the reason in fault->text. Nothing of this frame changes between setjmp and longjmp. */
static int run(Fault *fault, Job *job) {
    struct jpeg_decompress_struct cinfo;
    catch_faults(&cinfo, fault);
    cinfo.mem = NULL; /* destroy looks at it, also where create failed */
    if (setjmp(fault->back)) {
        lib.destroy(&cinfo);
        return 1;
    }
    lib.create(&cinfo, ABI, sizeof cinfo);
    if (job != NULL) read_region(&cinfo, fault, job);
    lib.destroy(&cinfo);
    return 0;
}

static PyObject *open_library(PyObject *module, PyObject *args) {
    static const char *names[] = {"jpeg_std_error",     "jpeg_CreateDecompress", "jpeg_destroy_decompress",
                                  "jpeg_mem_src",       "jpeg_read_header",      "jpeg_start_decompress",
                                  "jpeg_read_scanlines", "jpeg_skip_scanlines",  "jpeg_crop_scanline",
                                  "jpeg_finish_decompress"};
    void **places[] = {(void **)&lib.std_error, (void **)&lib.create, (void **)&lib.destroy,
                       (void **)&lib.mem_src,   (void **)&lib.read_header, (void **)&lib.start,
                       (void **)&lib.read,      (void **)&lib.skip,   (void **)&lib.crop,
                       (void **)&lib.finish};
    const char *path;
    Fault fault;
    (void)module;
    if (!PyArg_ParseTuple(args, "s", &path)) return NULL;
    if (is_open) Py_RETURN_NONE;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) return PyErr_Format(PyExc_OSError, "%s", dlerror());
    for (size_t number = 0; number < sizeof names / sizeof *names; number++) {
        *places[number] = dlsym(handle, names[number]);
        if (*places[number] == NULL) return PyErr_Format(PyExc_OSError, "%s has no %s", path, names[number]);
    }
    if (run(&fault, NULL)) return PyErr_Format(PyExc_OSError, "%s: %s", path, fault.text);
    is_open = 1;
    Py_RETURN_NONE;
}

static PyObject *decode(PyObject *module, PyObject *args) {
    Py_buffer data, out;
    Job job;
    Fault fault;
    unsigned int stored_height, stored_width, top, left, height, width;
    int failed;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*(II)(IIII)iw*", &data, &stored_height, &stored_width, &top, &left, &height, &width,
                          &job.denominator, &out))
        return NULL;
    PyObject *answer = NULL;
    if (!is_open) {
        PyErr_SetString(PyExc_OSError, "no libjpeg-turbo was opened");
    } else if (job.denominator != 1 && job.denominator != 2 && job.denominator != 4 && job.denominator != 8) {
        PyErr_Format(PyExc_ValueError, "a JPEG is scaled to 1/1, 1/2, 1/4 or 1/8, not 1/%d", job.denominator);
    } else if (top > 65535 || left > 65535 || height > 65535 || width > 65535) {
        PyErr_SetString(PyExc_ValueError, "the window is not in the picture");
    } else {
        job.data = data.buf;
        job.data_bytes = (size_t)data.len;
        job.out = out.buf;
        job.out_bytes = (size_t)out.len;
        job.stored_height = stored_height;
        job.stored_width = stored_width;
        job.top = top;
        job.left = left;
        job.height = height;
        job.width = width;
        Py_BEGIN_ALLOW_THREADS
        failed = run(&fault, &job);
        Py_END_ALLOW_THREADS
        if (failed) PyErr_Format(PyExc_ValueError, "%s", fault.text);
        else answer = Py_BuildValue("(II)", job.out_left, job.out_width);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    return answer;
}

static PyMethodDef methods[] = {
    {"open", open_library, METH_VARARGS, "open(path): use this libjpeg-turbo. Raises OSError if it has another ABI."},
    {"decode", decode, METH_VARARGS,
     "decode(data, (stored_height, stored_width), (top, left, height, width), denominator, out) -> (left, width)\n\n"
     "Write the window's rows, four bytes a pixel, to `out`; each holds the columns `left` to `left + width`, which\n"
     "contain the window. With a denominator of 2, 4 or 8 window and answer are in pixels of the scaled picture.\n"
     "Raises ValueError at the first fault that libjpeg-turbo names, warnings too."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_jpeg_region", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg_region(void) { return PyModuleDef_Init(&definition); }
