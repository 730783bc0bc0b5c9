#include "table.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "rans.h"

namespace nz {
namespace {

constexpr uint32_t kMainUnits = 255;  // of 256 slots, shared by the main ranks (§4.2)
constexpr uint32_t kFineUnits = 16;   // of 16 slots, shared by the fine ranks
constexpr uint32_t kBucketUnits =
    4;                               // main units in a 1024-slot bucket: a main rank this wide is alone in it
constexpr uint64_t kPatchBits = 26;  // a patch is 24 bits; the symbol coded in its place costs about two more

// What one frequency unit more (or, with f − 1, less) is worth to a symbol: d(w · log2 f) ~ w / (f + ½),
// scaled.
uint64_t worth(uint64_t weight, uint32_t frequency) { return (weight << 21) / (2 * frequency + 1); }

// Scales counts to shares that sum to `total`, each in [least, most], as close to proportional as the sum
// allows. False if that cannot be.
template <typename Share>
bool share_out(const uint32_t *count, size_t n, uint32_t total, uint32_t least, uint32_t most, Share *share) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += count[i];
  if (n * least > total || uint64_t{n} * most < total) return false;
  int64_t left = total;
  for (size_t i = 0; i < n; i++) {
    const uint64_t ideal = sum ? (uint64_t{count[i]} * total + sum / 2) / sum : least;
    share[i] = static_cast<Share>(std::clamp<uint64_t>(ideal, least, most));
    left -= share[i];
  }
  if (left == 0) return true;
  // What is left keeps its sign.
  const auto worth_of = [&](size_t i) {
    return left > 0 ? worth(count[i], share[i]) : worth(count[i], share[i] - 1u);
  };
  uint64_t worths[256];
  for (size_t i = 0; i < n; i++) worths[i] = worth_of(i);
  while (left != 0) {
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
      if (left > 0 ? share[i] >= most : share[i] <= least) continue;
      if (best == n || (left > 0 ? worths[i] > worths[best] : worths[i] < worths[best])) best = i;
    }
    // Large remainders come from many shares raised to `least`; taking them from the best share in steps is
    // as good.
    const int64_t room = left > 0 ? int64_t{most} - share[best] : int64_t{share[best]} - least;
    const int64_t stride = std::min({std::abs(left), room, std::max<int64_t>(1, share[best] / 32)});
    share[best] = static_cast<Share>(share[best] + (left > 0 ? stride : -stride));
    left += left > 0 ? -stride : stride;
    worths[best] = worth_of(best);
  }
  return true;
}

struct Ranked {
  size_t n;  // ranks
  uint8_t symbol[kMaxRanks];
  uint32_t count[kMaxRanks];  // descending
  uint64_t left_out;          // total count of symbols without a rank
};

Ranked rank_symbols(const Histogram &histogram) {
  uint8_t order[256];
  size_t n = 0;
  for (int s = 0; s < 256; s++)
    if (histogram[s]) order[n++] = static_cast<uint8_t>(s);
  std::sort(order, order + n, [&](uint8_t a, uint8_t b) {
    return histogram[a] != histogram[b] ? histogram[a] > histogram[b] : a < b;
  });
  Ranked ranked = {};
  ranked.n = std::min<size_t>(n, kMaxRanks);
  for (size_t i = 0; i < n; i++) {
    if (i < ranked.n)
      ranked.symbol[i] = order[i], ranked.count[i] = histogram[order[i]];
    else
      ranked.left_out += histogram[order[i]];
  }
  return ranked;
}

// Weights for `main` main ranks, the last `narrow` of which are at most 3 units together and so all lie in
// the last bucket, where the bucket rule of §4.2 does not bind; the wider ones have at least kBucketUnits.
bool weigh(const Ranked &ranked, size_t main, size_t narrow, uint8_t *weight) {
  const size_t wide = main - narrow;
  uint64_t all = 0, thin = 0;
  for (size_t i = 0; i < ranked.n; i++) all += ranked.count[i];
  for (size_t i = wide; i < main; i++) thin += ranked.count[i];
  uint32_t narrow_units = static_cast<uint32_t>(narrow);
  if (narrow && all)
    narrow_units = static_cast<uint32_t>(std::clamp<uint64_t>((thin * 256 + all / 2) / all, narrow, 3));
  return share_out(ranked.count, wide, kMainUnits - narrow_units, kBucketUnits, 255, weight) &&
         (!narrow || share_out(ranked.count + wide, narrow, narrow_units, 1, 3, weight + wide));
}

uint64_t rank_cost(const Ranked &ranked, size_t main, const uint8_t *weight) {
  const Log2 log2;
  uint64_t cost = ranked.left_out * kPatchBits << 16;
  for (size_t i = 0; i < ranked.n; i++)
    cost += ranked.count[i] * uint64_t{(16u << 16) - log2(weight[i] * (i < main ? 256u : 16u))};
  return cost >> 16;
}

}  // namespace

const uint32_t *Log2::table() {
  static const auto table = [] {
    std::array<uint32_t, 4097> t{};
    for (uint32_t v = 1; v <= 4096; v++) {
      uint32_t whole = 0;
      while (v >> (whole + 1)) whole++;
      uint64_t m = uint64_t{v} << (31 - whole);  // v / 2^whole in Q31, in [1, 2)
      uint32_t fraction = 0;
      for (int bit = 0; bit < 16; bit++) {
        m = m * m >> 31;
        fraction <<= 1;
        if (m >> 32) fraction |= 1, m >>= 1;
      }
      t[v] = whole << 16 | fraction;
    }
    return t;
  }();
  return table.data();
}

size_t plan_rank_table(const Histogram &histogram, uint8_t *bytes, uint64_t *cost) {
  const Ranked ranked = rank_symbols(histogram);
  if (ranked.n < 2) return 0;
  uint64_t all = 0;
  for (uint32_t c : ranked.count) all += c;
  uint64_t best = UINT64_MAX;
  uint64_t tail = all;  // counts of ranks ≥ main
  for (size_t main = 1; main < ranked.n && main < kMaxRanks; main++) {
    tail -= ranked.count[main - 1];
    // The fine ranks have 1/256 of the slots: a tail far above it is squeezed, far below it wastes them.
    if (tail * 64 > all && main + 1 < ranked.n) continue;
    uint8_t weight[kMaxRanks] = {};
    if (!share_out(ranked.count + main, ranked.n - main, kFineUnits, 1, 16, weight + main)) continue;
    for (size_t narrow = 0; narrow <= 3 && narrow < main; narrow++) {
      if (!weigh(ranked, main, narrow, weight)) continue;
      const uint64_t c = rank_cost(ranked, main, weight);
      if (c >= best) continue;
      best = c;
      std::memset(bytes, 0, kRankTableBytes);
      bytes[0] = static_cast<uint8_t>(ranked.n);
      bytes[1] = static_cast<uint8_t>(main);
      std::memcpy(bytes + 4, ranked.symbol, ranked.n);
      std::memcpy(bytes + 20, weight, ranked.n);
    }
    if (tail * 1024 < all) break;
  }
  *cost = best;
  return kRankTableBytes;
}

namespace {

// The forms that vectors look a slot's rank up in.
void fill_vectors(RankTable *table) {
  for (int r = 0; r < 2 * kMaxRanks; r++)
    table->end[r] = r + 1 < table->ranks ? static_cast<uint16_t>(table->start[r + 1] - 1) : 0xffff;
  for (int b = 0; b < 64; b++) table->bucket[b] = table->main[4 * b];
  for (int i = 0; i < 48; i++) table->last[i] = table->main[252 + i / 16];
  std::memcpy(table->last + 48, table->fine, 16);
}

}  // namespace

bool read_rank_table(const uint8_t *bytes, RankTable *table) {
  const int ranks = bytes[0], main = bytes[1];
  if (ranks < 2 || ranks > kMaxRanks || main < 1 || main >= ranks || bytes[2] || bytes[3]) return false;
  std::memset(table, 0, sizeof *table);
  std::memset(table->rank_of, kMissing, sizeof table->rank_of);
  table->ranks = ranks;
  table->main_ranks = main;
  uint32_t start = 0, bucket = UINT32_MAX;
  for (int r = 0; r < kMaxRanks; r++) {
    const uint32_t symbol = bytes[4 + r], weight = bytes[20 + r];
    if (r >= ranks) {
      if (symbol || weight) return false;
      table->start[r] = 0xffff;
      continue;
    }
    const uint32_t frequency = weight * (r < main ? 256 : 16);
    if (!weight || table->rank_of[symbol] != kMissing || start + frequency > 65536) return false;
    if (r == main && start != 65280) return false;
    if (start < 63 * 1024 && start % 1024) {  // strictly inside a bucket that is not the last
      if (start / 1024 == bucket) return false;
      bucket = start / 1024;
    }
    table->symbol[r] = static_cast<uint8_t>(symbol);
    table->rank_of[symbol] = static_cast<uint8_t>(r);
    table->frequency[r] = static_cast<uint16_t>(frequency);
    table->start[r] = static_cast<uint16_t>(start);
    if (r < main)
      std::memset(table->main + start / 256, r, weight);
    else
      std::memset(table->fine + (start - 65280) / 16, r, weight);
    start += frequency;
  }
  table->main[255] = static_cast<uint8_t>(main);
  fill_vectors(table);
  return start == 65536;
}

size_t plan_byte_table(const Histogram &histogram, int bits, uint8_t *bytes, uint64_t *cost) {
  uint32_t count[256], most = 0;
  uint64_t all = 0;
  size_t n = 0;
  std::memset(bytes, 0, kByteTableHeader);
  for (int s = 0; s < 256; s++) {
    if (!histogram[s]) continue;
    bytes[4 + s / 8] |= static_cast<uint8_t>(1 << s % 8);
    count[n++] = histogram[s];
    all += histogram[s];
    most = std::max(most, histogram[s]);
  }
  if (n < 2) return 0;
  // A frequency has at most 12 bits; a symbol that needs more gets it from fewer bits.
  while (bits > 12 && (uint64_t{most} << bits) > all * 4095) bits--;
  uint16_t share[256];
  share_out(count, n, 1u << bits, 1, 4095, share);
  bytes[0] = static_cast<uint8_t>(bits);
  store_u16(bytes + 2, static_cast<uint16_t>(n));
  const Log2 log2;
  uint64_t total = 0;
  for (size_t i = 0; i < n; i++) {
    store_u16(bytes + kByteTableHeader + 2 * i, share[i]);
    total += count[i] * uint64_t{(static_cast<uint32_t>(bits) << 16) - log2(share[i])};
  }
  *cost = total >> 16;
  return kByteTableHeader + 2 * n;
}

bool check_byte_table(const uint8_t *bytes, size_t size, size_t *used) {
  if (size < kByteTableHeader) return false;
  const int bits = bytes[0];
  const size_t count = load_u16(bytes + 2);
  if (bits < 12 || bits > kMaxByteBits || bytes[1] || count < 2 || count > 256) return false;
  *used = kByteTableHeader + 2 * count;
  if (size < *used) return false;
  size_t present = 0;
  for (uint32_t s = 0; s < 256; s++) present += bytes[4 + s / 8] >> s % 8 & 1;
  uint32_t sum = 0;
  for (size_t i = 0; i < count; i++) {
    const uint32_t f = load_u16(bytes + kByteTableHeader + 2 * i);
    if (f < 1 || f > 4095) return false;
    sum += f;
  }
  return present == count && sum == 1u << bits;
}

namespace {

// Of the two neighbours of 2^k / f, k = 32 + floor(log2 f), one is near enough. The lower one, r, with x + 1:
// let e = 2^k − r f, which r is chosen to make at least 1. (x + 1) r / 2^k = (x + 1) / f · (1 − e / 2^k) is
// below the next whole number, and not below this one while (x + 1) e ≤ 2^k. The upper one, with x, is right
// while x (f − e) < 2^k. x < f << (32 − bits), and the smaller of e and f − e is at most f / 2, so that one
// of them holds for all x: f² < 2^(k − 31 + bits), since f < 2^(k − 31) and f < 2^bits.
ByteCode byte_code(uint32_t frequency, uint32_t start, int bits) {
  if (frequency == 0) return {};
  const uint32_t shift = 31 - static_cast<uint32_t>(__builtin_clz(frequency));
  const uint64_t one = uint64_t{1} << (32 + shift), reciprocal = (one - 1) / frequency;
  const uint64_t short_of = one - reciprocal * frequency, most = uint64_t{frequency} << (32 - bits);
  const uint32_t round = most * short_of <= one;
  return {static_cast<uint32_t>(reciprocal) + 1 - round, frequency | start << 16, shift, round};
}

}  // namespace

bool read_byte_table(const uint8_t *bytes, size_t size, ByteTable *table, size_t *used) {
  if (!check_byte_table(bytes, size, used)) return false;
  table->bits = bytes[0];
  std::memset(table->missing, 0, sizeof table->missing);
  const uint8_t *frequency = bytes + kByteTableHeader;
  uint32_t start = 0;
  for (uint32_t s = 0; s < 256; s++) {
    const bool present = bytes[4 + s / 8] >> s % 8 & 1;
    const uint32_t f = present ? load_u16(frequency) : 0;
    table->frequency[s] = static_cast<uint16_t>(f);
    if (!present) table->missing[s >> 7][s & 15] |= static_cast<uint8_t>(1 << (s >> 4 & 7));
    table->code[s] = byte_code(f, start, table->bits);
    for (uint32_t k = 0; k < f; k++) table->slots[start + k] = s << 24 | f << 12 | k;
    if (present) frequency += 2;
    start += f;
  }
  return true;
}

}  // namespace nz
