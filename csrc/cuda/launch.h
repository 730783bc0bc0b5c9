/* How the kernels of this directory are launched: their arguments, their blocks, what they read and write.
 *
 * Every kernel takes its arguments from device memory and fixed-width integers, checks nothing that the host
 * could have checked, and reads and writes nothing beyond a chunk's or tensor's own bytes, whatever these
 * hold. All lengths and offsets are 64 bits where a tensor's size bounds them.
 *
 * A job is one tensor (or a run of whole chunks of one). Chunks of all jobs of a launch are numbered through:
 * job.first is the number of its first, the sum of the chunk counts before. A task is one such chunk, done by
 * one warp; `tasks` is their total. Blocks have NZ_WARPS warps and stride over the tasks, so any grid does
 * all the work; a good one has as many blocks as fit the GPU at once, but no more than tasks / NZ_WARPS,
 * rounded up. No kernel waits for another block, allocates, or needs cooperative launches.
 *
 * Kernels of tasks, block (32 · NZ_WARPS), no dynamic shared memory:
 *
 *   decode.cu    nz_decode_w1 … _w8 (jobs, count, tasks, status, first_bad)
 *       Chunks to original bytes. All jobs of a launch have the kernel's width. Writes status[task];
 *       checksums are not looked at. Reads packed, chunks[].offset .size .table, tables; writes original.
 *   checksum.cu  nz_verify (jobs, count, tasks, status, first_bad)
 *       Compares each chunk of `original` with chunks[].checksum and flags it where they differ. To be
 *       launched behind nz_decode; widths may be mixed.
 *   checksum.cu  nz_checksum (jobs, count, tasks)
 *       Writes chunks[].checksum of `original`; widths may be mixed.
 *   encode.cu    nz_encode_w1 … _w8 (jobs, count, tasks)
 *       Original bytes to chunks, one in each slot. All jobs of a launch have the kernel's width. Reads
 *       original, chunks[].table, tables; writes slots and chunks[].size. The bytes are those of the CPU's
 *       encoder.
 *   encode.cu    nz_compact (jobs, count, tasks)
 *       Copies slots to packed + chunks[].offset, behind nz_encode and nz_place; widths may be mixed. A chunk
 *       that ends beyond `capacity` is left out; the host sees that from offset and size.
 *
 * Other kernels, any grid:
 *
 *   encode.cu    nz_place (jobs, count), block (32)
 *       Sums chunks[].size of each job up to chunks[].offset, beginning with job.packed_at.
 *   planes.cu    nz_sample (segments, count, counts), block (256)
 *       Counts of a sample of each segment, from which nz_plan_counts makes the tables that nz_plan would.
 *   planes.cu    nz_split, nz_merge (planes, count), block (256)
 *       Units to planes and back, nothing coded; widths may be mixed.
 *   matvec.cu    multiplication with compressed matrices, at the end of this file.
 *
 * jobs, status, first_bad …: device pointers. count: uint32_t. tasks: uint64_t.
 * status: uint32_t for each task, an NzFault. first_bad: uint64_t, the lowest task that was flagged; the host
 * sets it to all ones before. */
#ifndef NEUZIP_CUDA_LAUNCH_H
#define NEUZIP_CUDA_LAUNCH_H

#include "device.h"

/* Warps of a block. Each has its own tables in shared memory. */
#define NZ_WARPS 4

/* Such blocks that a multiprocessor shall hold at least: 96 registers a thread. Left to itself, the compiler
 * aims at fewer and spills. */
#define NZ_BLOCKS 5

/* A chunk. */
typedef struct {
  uint64_t offset;   /* of its bytes from job.packed; a multiple of 4 if the frame begins at one */
  uint32_t size;     /* its length in the chunk index (§5) */
  uint32_t checksum; /* of its original bytes */
  uint32_t table;    /* offset of its entry (§5: first_chunk, base, table) from job.tables; of no meaning if
                      * job.kind is 0 */
  uint32_t padding;
} NzChunk;

/* A tensor. The host has checked what §6 demands of the header and, with nz_table_entries, the table blob;
 * each chunk's [offset, offset + size) lies in what `packed` points to. */
typedef struct {
  uint64_t first;        /* number of its first chunk in the launch; ascending with the jobs */
  uint64_t units;        /* in all; at least 1 */
  uint8_t *original;     /* units · width bytes, aligned to width */
  uint8_t *packed;       /* what the chunks' offsets count from, mostly the frame; aligned to 4 */
  NzChunk *chunks;       /* of each chunk */
  const uint8_t *tables; /* the table blob, aligned to 4; mostly part of the frame */
  uint8_t *slots;        /* encoding: NZ_SLOT_BYTES(width, chunk_log2) for each chunk, aligned to 4 */
  uint64_t packed_at;    /* encoding: offset of the first chunk, a multiple of 4 */
  uint64_t capacity;     /* encoding: bytes at packed */
  uint32_t kind;         /* of the blob: 0 none, 1 rank, 2 byte, 3 joint */
  uint32_t chunk_log2;
  uint32_t width; /* bytes a unit: 1, 2, 4 or 8. Units of more than one byte are rotated (§3) */
  uint32_t padding;
} NzJob;

/* Why a chunk was refused. */
typedef enum {
  NZ_FAULT_NONE = 0,
  NZ_FAULT_CHUNK = 1,   /* its records, sections, tables or patches break a rule of §4 */
  NZ_FAULT_STREAM = 2,  /* a stream does not end as §4.1 demands */
  NZ_FAULT_CHECKSUM = 3 /* its original bytes have another checksum */
} NzFault;

/* Bytes that suffice for an encoded chunk, and for the words of a stream that is given up because it does not
 * pay: they are placed from the slot's end downwards and may pass what pays by a step's 64 bytes. */
#define NZ_SLOT_BYTES(width, chunk_log2) ((uint64_t)(width) * (((uint64_t)1 << (chunk_log2)) + 12) + 1024)

/* A segment of a tensor to sample, from nz_plan_segments. counts, uint32_t, gets NZ_SEGMENT_COUNTS values for
 * each: how often each byte is plane 0, and how often each head (§4.6) occurs, 0 unless `heads`. */
#define NZ_SEGMENT_COUNTS 1280
typedef struct {
  const uint8_t *units; /* of the segment; aligned to width */
  uint64_t count;       /* units */
  uint64_t taken;       /* places at which 64 units in a row are counted */
  uint32_t width;
  uint32_t heads;
} NzSegment;

/* Units and their planes: plane p is `count` bytes from planes + p · stride. */
typedef struct {
  uint8_t *units;  /* aligned to width */
  uint8_t *planes; /* any alignment */
  uint64_t count;
  uint64_t stride;
  uint32_t width;
  uint32_t padding;
} NzPlanes;

/* y = x · Wᵀ for a matrix W of bf16 or fp16 that stays compressed: decoded chunk by chunk into shared memory,
 * multiplied in fp32, forgotten. Results do not depend on the grid. Checksums are not looked at.
 *
 *   nz_matvec_bf16, nz_matvec_f16 (matvec, tasks, status, first_bad)
 *       Tasks as above, dynamic shared memory NZ_WARPS · 2^(chunk_log2 + 1) bytes. Writes `partial` and
 *       status[task]. What a flagged chunk adds to is NaN.
 *   nz_matvec_sum_bf16, nz_matvec_sum_f16 (matvec)
 *       Behind it, block (256), grid any. Writes y from `partial`, added up in the order of the chunks.
 *
 * matvec: device pointer to one NzMatvec; its job.first is 0. */
#define NZ_MATVEC_BATCH 8
#define NZ_MATVEC_CHUNK_LOG2 11 /* at most: 4 tiles of 4 KiB and what is static stay below 48 KiB a block */
typedef struct {
  NzJob job;        /* of the matrix; width 2, chunk_log2 at most NZ_MATVEC_CHUNK_LOG2 */
  uint64_t rows;    /* of the matrix; rows · columns = job.units */
  uint64_t columns; /* a multiple of 4 */
  const uint8_t *x; /* batch × columns values of the matrix's type, aligned to 8 */
  uint8_t *y;       /* batch × rows values of the matrix's type */
  float *partial;   /* batch × (chunks + rows) values: sum of row r in chunk c is at c + r */
  uint32_t batch;   /* 1 … NZ_MATVEC_BATCH */
  uint32_t padding;
} NzMatvec;

#endif
