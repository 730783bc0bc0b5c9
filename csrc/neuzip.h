/* The whole C interface of the neuzip codec. formats/spec.md defines the bytes.
 *
 * Buffers belong to the caller, are never kept after a call returns, and need no alignment. Input is never
 * written. Functions return NZ_OK or a negative nz_status; they never throw, abort or print, and allocate no
 * more than a few MiB a thread and a few bytes a chunk and table. All functions are thread-safe except
 * nz_isa_select. */
#ifndef NEUZIP_H
#define NEUZIP_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define NZ_API __declspec(dllexport)
#else
#define NZ_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a signature or struct below changes; neuzip/_native.py refuses a library that answers
 * another. */
#define NZ_ABI_VERSION 6

typedef enum {
  NZ_OK = 0,
  NZ_CORRUPT = -1,    /* the bytes contradict the format or their checksum */
  NZ_TRUNCATED = -2,  /* the bytes end too early */
  NZ_ARGUMENT = -3,   /* the caller's fault: unknown layout, too small a buffer */
  NZ_MEMORY = -4,     /* scratch memory or a thread could not be had */
  NZ_UNSUPPORTED = -5 /* a format, version or feature that this library does not have */
} nz_status;

typedef enum { NZ_SCALAR = 0, NZ_AVX2 = 1, NZ_AVX512 = 2, NZ_NEON = 3, NZ_ISA_COUNT = 4 } nz_isa;

typedef enum { NZ_LEVEL_DEFAULT = 0, NZ_LEVEL_MAX = 1 } nz_level;

NZ_API int32_t nz_abi_version(void);

/* Functions with a parameter `threads` work on up to as many threads, the caller's among them: on the
 * library's own or, where NZ_TEAM is added to the number, on the team of nz_set_team. */
#define NZ_TEAM 65536

/* Calls work(context) on up to `threads` threads, the caller's among them: GOMP_parallel, which OpenMP
 * runtimes have; flags are 0. */
typedef void (*nz_parallel)(void (*work)(void *), void *context, unsigned threads, unsigned flags);

/* The team from now on; NULL for none. For a caller whose other work runs on OpenMP's threads: these spin for
 * some milliseconds after it, on the cores that threads of another kind would wait for. A forked child has no
 * team, and the library's own threads instead: OpenMP's do not live through a fork. */
NZ_API void nz_set_team(nz_parallel parallel);

/* Name of an instruction set ("scalar", "avx2", …); NULL if out of range. */
NZ_API const char *nz_isa_name(int32_t isa);
/* 1 if this build has the instruction set's loops and this processor runs them, else 0. */
NZ_API int32_t nz_isa_available(int32_t isa);
/* Forces the loops used from now on, by every thread; -1 returns to the best available. For tests and
 * benchmarks. */
NZ_API int32_t nz_isa_select(int32_t isa);
/* The nz_isa in use. */
NZ_API int32_t nz_isa_current(void);

/* XXH3-64, seed 0 (spec §1). */
NZ_API uint64_t nz_checksum64(const void *data, size_t size);
/* checksum32 (§1) of each of `count` pieces of `data`: sizes[i] bytes from starts[i] on. */
NZ_API void nz_checksums32(const uint8_t *data, const uint64_t *starts, const uint64_t *sizes, size_t count,
                           uint32_t *checksums);

/* Bytes that suffice for any table blob nz_plan writes. */
#define NZ_TABLE_CAPACITY (160 * 1024)

/* Samples a tensor and writes the table blob (spec §5) its chunks of 2^chunk_log2 units will be coded with.
 * `table` has NZ_TABLE_CAPACITY bytes. Returns the blob's length, 0 if no table pays; or a negative
 * nz_status. */
NZ_API int32_t nz_plan(int32_t layout, int32_t level, int32_t chunk_log2, const uint8_t *src, uint64_t units,
                       uint8_t *table);

/* What nz_plan does, in two steps for a tensor that lies elsewhere: nz_plan_segments says which of its units
 * are looked at, nz_plan_counts chooses the tables from what was seen there.
 *
 * Writes three values for each of up to NZ_MAX_SEGMENTS segments: its first unit, its units, and the number
 * of places `taken`; place p is the 64 units (or those left) that follow unit p * ceil(units / 64) / taken *
 * 64 of the segment, divisions rounded down. Returns the number of segments, 0 if the tensor is too small for
 * tables. */
#define NZ_MAX_SEGMENTS 256
NZ_API int32_t nz_plan_segments(int32_t layout, int32_t chunk_log2, uint64_t units, uint64_t *segments);

/* `counts` has NZ_SEGMENT_COUNTS values for each segment: how often each byte is plane 0 of a unit looked at,
 * then how often each head (spec §4.6) occurs; heads only matter at level max of layouts with joint. Returns
 * what nz_plan does. */
#define NZ_SEGMENT_COUNTS 1280
NZ_API int32_t nz_plan_counts(int32_t layout, int32_t level, int32_t chunk_log2, const uint32_t *counts,
                              uint64_t units, uint8_t *table);

/* Checks a table blob (spec §5) and writes two values for each of its entries, of which there are at most as
 * many as its bytes 2 and 3 say: its first chunk, and its offset in the blob. Returns their number, 0 for an
 * empty blob, or NZ_CORRUPT. */
NZ_API int32_t nz_table_entries(int32_t layout, const uint8_t *table, uint32_t table_bytes,
                                uint32_t *entries);

/* Upper bound of one encoded chunk of up to 2^chunk_log2 units. 0 if the layout is unknown. */
NZ_API uint64_t nz_chunk_bound(int32_t layout, int32_t chunk_log2);

/* A run of whole chunks of one tensor to encode. */
typedef struct {
  const uint8_t *src;   /* original bytes of the run's first chunk */
  uint64_t units;       /* units in the run; all chunks but the run's last are full */
  uint64_t first_chunk; /* number of the run's first chunk in its tensor */
  const uint8_t *table; /* blob from nz_plan; may be NULL if table_bytes is 0 */
  uint32_t table_bytes;
  int32_t layout;
  int32_t chunk_log2; /* 10 … 16 */
  int32_t status;     /* out: nz_status */
  uint8_t *dst;       /* out: the chunks, one after another */
  uint64_t capacity;  /* of dst; chunks · nz_chunk_bound always suffices */
  uint64_t written;   /* out: bytes written to dst */
  uint32_t *index;    /* out: length and checksum32 of each chunk, 2 · chunks values */
} nz_encode_job;

/* Encodes all jobs with up to `threads` threads, splitting jobs as needed. The bytes do not depend on the
 * number of threads or on the instruction set. Returns NZ_OK, or the first failing job's status; every job
 * has its own. */
NZ_API int32_t nz_encode(nz_encode_job *jobs, size_t count, int32_t threads);

/* A run of whole chunks of one tensor to decode. */
typedef struct {
  const uint8_t *src;    /* the run's chunks, one after another */
  uint64_t size;         /* bytes at src; must be the sum of the lengths in index */
  const uint32_t *index; /* length and checksum32 of each chunk (spec §5) */
  uint64_t units;        /* units in the run; all chunks but the run's last are full */
  uint64_t first_chunk;  /* number of the run's first chunk in its tensor */
  const uint8_t *table;  /* blob (spec §5) */
  uint32_t table_bytes;
  int32_t layout;
  int32_t chunk_log2;
  int32_t verify;     /* compare checksums */
  int32_t status;     /* out: nz_status */
  uint64_t bad_chunk; /* out: lowest failing chunk of the run seen, if status is not NZ_OK */
  uint8_t *dst;       /* out: units · width bytes */
} nz_decode_job;

/* Decodes all jobs with up to `threads` threads. Contents of dst are unspecified for a job that failed. */
NZ_API int32_t nz_decode(nz_decode_job *jobs, size_t count, int32_t threads);

/* The rule of §6 that a frame's header breaks. */
typedef enum {
  NZ_HEADER_GOOD = 0,
  NZ_HEADER_SHORT = 1, /* truncated: not even its first 40 bytes are there */
  NZ_HEADER_MAGIC = 2, /* unsupported, as are the next four */
  NZ_HEADER_VERSION = 3,
  NZ_HEADER_REQUIRED = 4,
  NZ_HEADER_DTYPE = 5,
  NZ_HEADER_CODING = 6,
  NZ_HEADER_RANGE = 7, /* chunk_log2 or ndim */
  NZ_HEADER_RATIO = 8, /* more original bytes than any frame of its size has */
  NZ_HEADER_SIZE = 9,  /* the header does not fit the frame */
  NZ_HEADER_CUT = 10,  /* truncated: the header is not all there */
  NZ_HEADER_CHECKSUM = 11,
  NZ_HEADER_SHAPE = 12,
  NZ_HEADER_PLANES = 13,  /* the dtype is not cut into planes */
  NZ_HEADER_TABLE = 14,   /* a table blob beside another coding */
  NZ_HEADER_LENGTHS = 15, /* the chunks do not fill the frame */
  NZ_HEADER_LENGTH = 16,  /* a stored or zstd chunk has an impossible one */
  NZ_FRAME_CUT = 17,      /* truncated: the frame is not all there */
  NZ_FRAME_LONG = 18,     /* bytes follow the frame */
  NZ_FRAME_PADDING = 19
} nz_header_fault;

/* What a frame's header says (spec §5), but for its tables and chunk index. */
typedef struct {
  uint64_t size; /* original bytes */
  uint64_t frame_size;
  uint64_t header_size; /* offset of the first chunk; of no meaning with a fault up to NZ_HEADER_RATIO */
  uint64_t chunks;
  uint64_t bad_chunk; /* with NZ_HEADER_LENGTH */
  uint32_t table_bytes;
  uint32_t required;
  int32_t version;
  int32_t dtype;
  int32_t coding;
  int32_t chunk_log2;
  int32_t ndim;
  int32_t level;
  int32_t fault; /* nz_header_fault */
  uint64_t shape[32];
} nz_frame;

/* Reads and checks the header of the frame that begins at `data` (§6), all but the table blob, which decoding
 * checks; if `whole`, also that the frame has exactly `size` bytes, with its final padding. Returns NZ_OK, or
 * what the fault amounts to. */
NZ_API int32_t nz_read_header(const uint8_t *data, uint64_t size, int32_t whole, nz_frame *frame);

/* Writes a frame's header, header_size bytes, to `dst`: from its size, dtype, coding, chunk_log2, level,
 * ndim, shape, table_bytes and the bytes of the table blob and of the chunk index. Fills in the rest of
 * `frame`. */
NZ_API int32_t nz_write_header(nz_frame *frame, const uint8_t *table, const uint32_t *index, uint8_t *dst);

/* A whole frame of coding planes or stored, to decode. */
typedef struct {
  const uint8_t *src; /* the frame, `size` bytes */
  uint64_t size;
  uint8_t *dst;      /* out: its original bytes */
  uint64_t capacity; /* of dst: exactly their number */
  const uint64_t
      *shape; /* ndim lengths, which the header has to state, and the dtype; or NULL: any will do */
  int32_t ndim;
  int32_t dtype;  /* code (spec §2) */
  int32_t verify; /* compare checksums */
  int32_t status; /* out: nz_status; NZ_UNSUPPORTED if the coding is zstd */
} nz_decode_frame_job;

/* Decodes all jobs with up to `threads` threads. Contents of dst are unspecified for a job that failed. */
NZ_API int32_t nz_decode_frames(nz_decode_frame_job *jobs, size_t count, int32_t threads);

/* Original bytes below which nothing is coded: the states alone outweigh what coding can save. */
#define NZ_SMALL 256

/* A tensor to encode as a whole frame: of coding planes, or stored if it has fewer than NZ_SMALL bytes. */
typedef struct {
  const uint8_t *src;    /* its bytes */
  uint64_t size;         /* those of `shape` elements of `dtype` */
  const uint64_t *shape; /* ndim lengths */
  int32_t ndim;
  int32_t dtype; /* code (spec §2), of a layout that is cut into planes */
  int32_t level;
  int32_t chunk_log2;
  uint8_t *dst;      /* out: the frame */
  uint64_t capacity; /* of dst; nz_frame_bound suffices */
  uint64_t written;  /* out: bytes of the frame */
  int32_t status;    /* out: nz_status */
} nz_encode_frame_job;

/* Encodes all jobs with up to `threads` threads. The bytes depend on neither threads nor instruction set. */
NZ_API int32_t nz_encode_frames(nz_encode_frame_job *jobs, size_t count, int32_t threads);

/* Upper bound of a frame of `size` original bytes; 0 if the dtype is unknown or not cut into planes. */
NZ_API uint64_t nz_frame_bound(int32_t dtype, int32_t ndim, uint64_t size, int32_t chunk_log2);

/* bf16 values in memory at a fixed width of some 12 bits, for products at the speed of memory: what a model's
 * weights are while it answers. The bytes are this library's own, for no file and no other release; the
 * functions below trust them. Values lie at even addresses.
 *
 * Bytes that suffice for `values` values. */
NZ_API uint64_t nz_fixed_bound(uint64_t values);

/* Writes `values` bf16 values to dst, whose `capacity` is nz_fixed_bound(values). Returns the bytes written;
 * 0 if the exponents differ too much for this form to save memory. */
NZ_API uint64_t nz_fixed_encode(const uint8_t *src, uint64_t values, uint8_t *dst, uint64_t capacity);

/* Values `first` … `first + count - 1` of a code of `size` bytes. */
NZ_API int32_t nz_fixed_decode(const uint8_t *code, uint64_t size, uint64_t first, uint64_t count,
                               uint8_t *dst, int32_t threads);

/* y = x Wᵀ + bias in bf16, with sums of floats that run as in torch's kernels for x86 processors with AVX2
 * and without AVX-512: 64 sums over every 64th product, by fused multiply-add, added up in halves. */
typedef struct {
  const uint8_t *code; /* W, out_features rows of in_features values, in_features a multiple of 64 */
  uint64_t size;
  uint64_t out_features;
  uint64_t in_features;
  const uint8_t *x; /* rows · in_features values */
  uint64_t rows;
  const uint8_t *bias; /* out_features values, or NULL */
  uint8_t *y;          /* out: rows · out_features values */
} nz_fixed_linear_job;

NZ_API int32_t nz_fixed_linear(const nz_fixed_linear_job *job, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
