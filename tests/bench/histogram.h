/* A log-linear histogram of durations in ns: 128 steps for each power of two, so that a
 * percentile is at most 0.8 % off.
 */
#pragma once

#include "common.h"

#define STEP_BITS 7
#define STEPS (1u << STEP_BITS)
#define BUCKETS ((65 - STEP_BITS) * STEPS)

struct histogram {
	uint64_t counts[BUCKETS];
	uint64_t total;
	uint64_t max_ns;
	double sum_ns;
};

static inline unsigned int bucket_of(uint64_t value)
{
	unsigned int shift;

	if (value < STEPS)
		return (unsigned int)value;
	shift = 63 - STEP_BITS - (unsigned int)__builtin_clzll(value);
	return shift * STEPS + (unsigned int)(value >> shift);
}

/* The middle of a bucket. */
static inline double value_of(unsigned int bucket)
{
	unsigned int shift;

	if (bucket < 2 * STEPS)
		return bucket;
	shift = bucket / STEPS - 1;
	return ((double)(bucket % STEPS + STEPS) + 0.5) * (double)(1ULL << shift);
}

static inline void record(struct histogram *h, uint64_t ns)
{
	h->counts[bucket_of(ns)]++;
	h->total++;
	h->sum_ns += (double)ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
}

static inline double percentile_us(const struct histogram *h, double share)
{
	uint64_t rank = (uint64_t)(share * (double)h->total);
	uint64_t seen = 0;

	for (unsigned int i = 0; i < BUCKETS; i++) {
		seen += h->counts[i];
		if (seen > rank && value_of(i) < (double)h->max_ns)
			return value_of(i) / 1000;
	}
	return (double)h->max_ns / 1000;
}

/* The members of a JSON object, without its braces. */
static inline void print_histogram(const struct histogram *h)
{
	double mean_us = h->total ? h->sum_ns / (double)h->total / 1000 : 0;

	printf("\"count\":%llu,\"mean_us\":%.2f", (unsigned long long)h->total, mean_us);
	printf(",\"p50_us\":%.2f,\"p90_us\":%.2f", percentile_us(h, 0.5), percentile_us(h, 0.9));
	printf(",\"p99_us\":%.2f,\"p999_us\":%.2f", percentile_us(h, 0.99),
	       percentile_us(h, 0.999));
	printf(",\"max_us\":%.2f", (double)h->max_ns / 1000);
}
