// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// An alias: TCP that comes in at a link from one address of IPv6 is taken for what comes from another one, and what
// leaves for that goes to the first. No state: each packet is rewritten by itself, before whoever else looks at it.
//
// The other programs of the link come after this one: it never ends their list.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#define SECTION(name) __attribute__((section(name), used))
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define be16(number) ((__be16)__builtin_bswap16(number))

// Helpers, by their numbers in linux/bpf.h.
static long (*const load_bytes)(const struct __sk_buff *, __u32 offset, void *to, __u32 length) =
	(void *)BPF_FUNC_skb_load_bytes;
static long (*const store_bytes)(struct __sk_buff *, __u32 offset, const void *from, __u32 length, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static __s64 (*const csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size, __u32 seed) =
	(void *)BPF_FUNC_csum_diff;
static long (*const l4_csum_replace)(struct __sk_buff *, __u32 offset, __u64 from, __u64 to, __u64 flags) =
	(void *)BPF_FUNC_l4_csum_replace;

// As they are on the wire. Set when this is loaded.
const volatile struct {
	__be32 address[4];
	__be32 alias[4];
} names = {};

enum { ADDRESS = 4 * sizeof(__be32), CHECKSUM = ETH_HLEN + sizeof(struct ipv6hdr) + __builtin_offsetof(struct tcphdr, check) };

static ALWAYS_INLINE int rewrite(struct __sk_buff *packet, __u32 offset, const volatile __be32 *from, const volatile __be32 *to)
{
	__be32 is[4], was[4], will_be[4];
	__u8 next;

	if (packet->protocol != be16(ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	if (load_bytes(packet, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, nexthdr), &next, sizeof(next)) < 0)
		return TC_ACT_UNSPEC;
	if (next != IPPROTO_TCP || load_bytes(packet, ETH_HLEN + offset, is, ADDRESS) < 0)
		return TC_ACT_UNSPEC;
	for (int i = 0; i < 4; i++) {
		was[i] = from[i];
		will_be[i] = to[i];
		if (is[i] != was[i])
			return TC_ACT_UNSPEC;
	}
	// Half of a rewrite would reach somebody else.
	if (store_bytes(packet, ETH_HLEN + offset, will_be, ADDRESS, 0) < 0)
		return TC_ACT_SHOT;
	if (l4_csum_replace(packet, CHECKSUM, 0, csum_diff(was, ADDRESS, will_be, ADDRESS, 0), BPF_F_PSEUDO_HDR) < 0)
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

SECTION("tc")
int alias_in(struct __sk_buff *packet)
{
	return rewrite(packet, __builtin_offsetof(struct ipv6hdr, saddr), names.address, names.alias);
}

SECTION("tc")
int alias_out(struct __sk_buff *packet)
{
	return rewrite(packet, __builtin_offsetof(struct ipv6hdr, daddr), names.alias, names.address);
}

char licence[] SECTION("license") = "Dual BSD/GPL";
