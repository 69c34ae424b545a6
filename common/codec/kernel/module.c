/* offramp.common.codec._kernel: coder.h for Python, in the limited API, so that one build serves every version. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "coder.h"

#include <string.h>

static const char *const MESSAGES[] = {
    [CODER_OK] = "",
    [CODER_SHORT] = "ends before its last symbol",
    [CODER_LONG] = "is longer than its symbols need",
    [CODER_PADDING] = "has padding or a last state that no encoder writes",
    [CODER_TOKEN] = "has a token that cannot stand where it does",
};

/* All types: a coder, its size and what to call. A payload is coded under the interpreter's lock, which
 * is what allows the coder's scratch memory. */
typedef struct {
    PyObject_HEAD
    void *coder;
    size_t symbols;
    uint8_t *payload; /* of the largest size there is, from the first encoding on */
} kernel;

static PyObject *decoded(PyObject *symbols, enum coder_error error)
{
    if (!error)
        return symbols;
    Py_DECREF(symbols);
    PyErr_Format(PyExc_ValueError, "the payload %s", MESSAGES[error]);
    return NULL;
}

static int get_input(PyObject *object, Py_buffer *view, const kernel *self, int exactly)
{
    if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) < 0)
        return -1;
    if (exactly && (size_t)view->len != self->symbols) {
        PyErr_Format(PyExc_ValueError, "%zd symbols, expected %zu", view->len, self->symbols);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

#define DEFINE_METHODS(NAME)                                                                                   \
    static PyObject *NAME##_encode_method(PyObject *self_, PyObject *symbols)                                  \
    {                                                                                                          \
        kernel *self = (kernel *)self_;                                                                        \
        Py_buffer view;                                                                                        \
        if (get_input(symbols, &view, self, 1) < 0)                                                            \
            return NULL;                                                                                       \
        PyObject *result = NULL;                                                                               \
        if (!self->payload)                                                                                    \
            self->payload = PyMem_Malloc(NAME##_bound(self->coder));                                           \
        if (self->payload) {                                                                                   \
            size_t size = NAME##_encode(self->coder, view.buf, self->payload);                                 \
            result = PyBytes_FromStringAndSize((const char *)self->payload, (Py_ssize_t)size);                 \
        } else {                                                                                               \
            PyErr_NoMemory();                                                                                  \
        }                                                                                                      \
        PyBuffer_Release(&view);                                                                               \
        return result;                                                                                         \
    }                                                                                                          \
    static PyObject *NAME##_decode_method(PyObject *self_, PyObject *payload)                                  \
    {                                                                                                          \
        kernel *self = (kernel *)self_;                                                                        \
        Py_buffer view;                                                                                        \
        if (get_input(payload, &view, self, 0) < 0)                                                            \
            return NULL;                                                                                       \
        PyObject *symbols = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)self->symbols);                        \
        if (symbols)                                                                                           \
            symbols = decoded(symbols, NAME##_decode(self->coder, view.buf, (size_t)view.len,                  \
                                                     (uint8_t *)PyBytes_AsString(symbols)));                   \
        PyBuffer_Release(&view);                                                                               \
        return symbols;                                                                                        \
    }                                                                                                          \
    static void NAME##_dealloc(PyObject *self)                                                                 \
    {                                                                                                          \
        PyTypeObject *type = Py_TYPE(self);                                                                    \
        NAME##_destroy(((kernel *)self)->coder);                                                               \
        PyMem_Free(((kernel *)self)->payload);                                                                 \
        freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);                                         \
        release(self);                                                                                         \
        Py_DECREF(type);                                                                                       \
    }                                                                                                          \
    static PyMethodDef NAME##_methods[] = {                                                                    \
        {"encode", NAME##_encode_method, METH_O, "C*H*W symbols, bytes, to a payload, bytes."},                \
        {"decode", NAME##_decode_method, METH_O,                                                               \
         "A payload to C*H*W symbols, bytes. Raises ValueError for one that no encoder writes."},              \
        {NULL, NULL, 0, NULL},                                                                                 \
    };

DEFINE_METHODS(huffman)
DEFINE_METHODS(run_huffman)
DEFINE_METHODS(rans)
DEFINE_METHODS(context)

/* channels, plane, lanes and the channels' tables, of both constructors. */
static int check_shape(const coder_shape *shape, const Py_buffer *table_of_channel, size_t tables)
{
    const uint16_t *of = table_of_channel->buf;
    if (!shape->channels || !shape->plane || !shape->lanes || shape->lanes > MAX_LANES ||
        shape->lanes > shape->channels || (uint64_t)shape->channels * shape->plane > MAX_SYMBOLS || !tables ||
        (size_t)table_of_channel->len != shape->channels * sizeof *of) {
        PyErr_SetString(PyExc_ValueError, "channels, plane, lanes and tables do not fit together");
        return -1;
    }
    for (uint32_t c = 0; c < shape->channels; c++)
        if (of[c] >= tables) {
            PyErr_SetString(PyExc_ValueError, "a channel names a table that is not there");
            return -1;
        }
    return 0;
}

static PyObject *finish(PyTypeObject *type, void *coder, const coder_shape *shape, void (*destroy)(void *))
{
    if (!coder) {
        PyErr_SetString(PyExc_ValueError, "the tables are no complete code, or need more memory than there is");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    kernel *self = (kernel *)allocate(type, 0);
    if (!self) {
        destroy(coder);
        return NULL;
    }
    self->coder = coder;
    self->symbols = (size_t)shape->channels * shape->plane;
    return (PyObject *)self;
}

static void destroy_huffman(void *coder)
{
    huffman_destroy(coder);
}

static void destroy_run_huffman(void *coder)
{
    run_huffman_destroy(coder);
}

static void destroy_rans(void *coder)
{
    rans_destroy(coder);
}

static void destroy_context(void *coder)
{
    context_destroy(coder);
}

static PyObject *huffman_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    coder_shape shape;
    Py_buffer lengths, of_channel;
    if (!PyArg_ParseTuple(args, "IIIy*y*", &shape.channels, &shape.plane, &shape.lanes, &lengths, &of_channel))
        return NULL;
    size_t tables = (size_t)lengths.len / SYMBOLS;
    PyObject *self = NULL;
    if (check_shape(&shape, &of_channel, tables) == 0)
        self = finish(type, huffman_create(shape, lengths.buf, (uint32_t)tables, of_channel.buf), &shape,
                      destroy_huffman);
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&of_channel);
    return self;
}

/* Tables one behind the other: runs, columns - 1 and order, a byte each, and then the lengths. 0 where they do not
 * end where the argument ends, or are more than `most`. */
static uint32_t read_run_tables(const uint8_t *p, size_t size, run_huffman_table *tables, uint32_t most)
{
    uint32_t count = 0;
    for (; size; count++) {
        if (count == most || size < 3)
            return 0;
        run_huffman_table *table = &tables[count];
        *table = (run_huffman_table){p[0], p[1] + 1u, p[2], p + 3};
        size_t bytes = 3 + (size_t)table->runs * table->columns + (table->runs > 1);
        if (bytes > size)
            return 0;
        p += bytes;
        size -= bytes;
    }
    return count;
}

static PyObject *run_huffman_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    coder_shape shape;
    Py_buffer stored, of_channel, modes;
    if (!PyArg_ParseTuple(args, "IIIy*y*y*", &shape.channels, &shape.plane, &shape.lanes, &stored, &of_channel,
                          &modes))
        return NULL;
    PyObject *self = NULL;
    /* No more tables than channels; a channel is two bytes of the map. */
    uint32_t most = (uint32_t)(of_channel.len / (Py_ssize_t)sizeof(uint16_t));
    run_huffman_table *tables = PyMem_Calloc(most + 1, sizeof *tables);
    if (!tables) {
        PyErr_NoMemory();
    } else {
        uint32_t count = read_run_tables(stored.buf, (size_t)stored.len, tables, most);
        if (check_shape(&shape, &of_channel, count) == 0) {
            if ((size_t)modes.len == shape.channels)
                self = finish(type, run_huffman_create(shape, tables, count, of_channel.buf, modes.buf), &shape,
                              destroy_run_huffman);
            else
                PyErr_SetString(PyExc_ValueError, "there is not one mode for each channel");
        }
        PyMem_Free(tables);
    }
    PyBuffer_Release(&stored);
    PyBuffer_Release(&of_channel);
    PyBuffer_Release(&modes);
    return self;
}

/* One table in the constructor's argument: tokens, runs, mode and padding as 16-bit words and bytes; then 256 tokens. */
enum { TABLE_HEADER = 6, TOKEN_BYTES = 6, TABLE_BYTES = TABLE_HEADER + SYMBOLS * TOKEN_BYTES };

static void read_table(const uint8_t *p, rans_table *table)
{
    table->tokens = (uint32_t)p[0] | (uint32_t)p[1] << 8;
    table->runs = (uint32_t)p[2] | (uint32_t)p[3] << 8;
    table->mode = p[4];
    p += TABLE_HEADER;
    for (uint32_t i = 0; i < SYMBOLS; i++, p += TOKEN_BYTES)
        table->token[i] = (rans_token){(uint16_t)(p[0] | p[1] << 8), p[2], p[3], p[4]};
}

static PyObject *rans_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    coder_shape shape;
    Py_buffer stored, of_channel;
    if (!PyArg_ParseTuple(args, "IIIy*y*", &shape.channels, &shape.plane, &shape.lanes, &stored, &of_channel))
        return NULL;
    size_t count = (size_t)stored.len / TABLE_BYTES;
    PyObject *self = NULL;
    if (check_shape(&shape, &of_channel, count) == 0) {
        rans_table *tables = PyMem_Malloc(count * sizeof *tables);
        if (tables) {
            for (size_t i = 0; i < count; i++)
                read_table((const uint8_t *)stored.buf + i * TABLE_BYTES, &tables[i]);
            self = finish(type, rans_create(shape, tables, (uint32_t)count, of_channel.buf), &shape,
                          destroy_rans);
            PyMem_Free(tables);
        } else {
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&stored);
    PyBuffer_Release(&of_channel);
    return self;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    uint32_t channels, height, width;
    Py_buffer stored;
    if (!PyArg_ParseTuple(args, "IIIy*", &channels, &height, &width, &stored))
        return NULL;
    PyObject *self = NULL;
    const uint8_t *bytes = stored.buf;
    uint32_t reach = stored.len ? bytes[0] : 0;
    /* Each side first: their product must fit. */
    if (!channels || channels > MAX_CONTEXT_CHANNELS || !height || height > 65535 || !width || width > 65535 ||
        (uint64_t)channels * height * width > MAX_SYMBOLS || !reach || reach > MAX_CONTEXT_REACH ||
        (size_t)stored.len != 1 + context_model_bytes(channels, height, width, reach)) {
        PyErr_SetString(PyExc_ValueError, "channels, height, width and model do not fit together");
    } else {
        coder_shape shape = {channels, height * width, 1};
        self = finish(type, context_create(channels, height, width, reach, bytes + 1), &shape, destroy_context);
    }
    PyBuffer_Release(&stored);
    return self;
}

#define DEFINE_TYPE(NAME, PUBLIC, DOC)                                                                         \
    static PyType_Slot NAME##_slots[] = {                                                                      \
        {Py_tp_new, NAME##_new},                                                                               \
        {Py_tp_dealloc, NAME##_dealloc},                                                                       \
        {Py_tp_methods, NAME##_methods},                                                                       \
        {Py_tp_doc, DOC},                                                                                      \
        {0, NULL},                                                                                             \
    };                                                                                                         \
    static PyType_Spec NAME##_spec = {"offramp.common.codec._kernel." PUBLIC, sizeof(kernel), 0, Py_TPFLAGS_DEFAULT, \
                                      NAME##_slots};

DEFINE_TYPE(huffman, "Huffman", "Huffman(channels, plane, lanes, lengths, table_of_channel)")
DEFINE_TYPE(run_huffman, "RunHuffman",
            "RunHuffman(channels, plane, lanes, tables, table_of_channel, mode_of_channel)")
DEFINE_TYPE(rans, "Rans", "Rans(channels, plane, lanes, tables, table_of_channel)")
DEFINE_TYPE(context, "Context", "Context(channels, height, width, model)")

static int add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromSpec(spec);
    int failed = !type || PyModule_AddObjectRef(module, name, type) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static int add_types(PyObject *module)
{
    return add_type(module, &huffman_spec, "Huffman") || add_type(module, &run_huffman_spec, "RunHuffman") ||
                   add_type(module, &rans_spec, "Rans") || add_type(module, &context_spec, "Context")
               ? -1
               : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, add_types}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_doc = "The compiled coders; common/codec/activation.py, run_huffman.py, rans.py and context.py are their reference.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&definition);
}
