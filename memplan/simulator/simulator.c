/* The rules of memplan/plan/simulation.py, many steps at once.
 *
 * While nobody reads a prompt, every step adds one token to every request that runs, so that nothing
 * changes but sums with a closed form until somebody ends, somebody comes who may enter, or blocks run
 * out: all steps until then are one. All else is done step by step. Times are whole picoseconds.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t whole;

typedef struct {
    whole pool_blocks, block_tokens, max_requests, batch_tokens, queue_limit, over_blocks;
    whole step_ps, prompt_token_ps, decode_ps, kv_token_ps, pair_ps;
} rules_t;

/* One that runs. Blocks that it may claim and the last known token are kept, because admission asks. */
typedef struct {
    whole at, prompt, output, out, computed, held, reserved_blocks, row;
} request_t;

typedef struct {
    const whole *arrival_ps, *prompt, *output, *reserved;
    whole *status, *admitted_ps, *first_ps, *end_ps, *preemptions;
} columns_t;

typedef struct {
    whole at, out;
} waiting_t;

typedef struct {
    whole busy_ps, over_ps, last_ps, steps, peak_blocks, most_waiting, most_running;
} totals_t;

typedef struct {
    const rules_t *r;
    const columns_t *c;
    totals_t t;
    request_t *running;
    whole n;
    /* A queue that those who made way are put in front of: it grows to both sides of its middle. */
    waiting_t *queue;
    whole head, tail;
    whole now_ps;
    whole held;
    whole *ring;
    /* Those to come: from mine[next] on, before mine[last]. */
    const whole *mine;
    whole next, last;
} replica_t;

static inline whole most(whole a, whole b) { return a > b ? a : b; }
static inline whole least(whole a, whole b) { return a < b ? a : b; }
static inline whole blocks_of(const rules_t *r, whole tokens) {
    return (tokens + r->block_tokens - 1) / r->block_tokens;
}
static inline whole known(const request_t *q) { return q->prompt + q->out; }
static inline int is_decoding(const request_t *q) { return q->out > 0 && q->computed == known(q) - 1; }

static whole promised(const replica_t *p) {
    whole sum = 0;
    for (whole i = 0; i < p->n; i++) {
        const request_t *q = &p->running[i];
        whole claim = most(q->held, q->reserved_blocks);
        /* One that decodes holds the blocks of all known tokens but the newest. */
        sum += claim * p->r->block_tokens >= known(q) ? claim : blocks_of(p->r, known(q));
    }
    return sum;
}

static whole entry(const replica_t *p, const waiting_t *w) {
    whole prompt = p->c->prompt[w->at], reserved = p->c->reserved[w->at];
    whole now = blocks_of(p->r, prompt + w->out);
    if (reserved) return most(now, blocks_of(p->r, reserved));
    return least(now + 1, blocks_of(p->r, prompt + p->c->output[w->at] - 1));
}

static void admit(replica_t *p) {
    if (p->head < p->tail && p->n < p->r->max_requests) {
        whole sum = promised(p);
        while (p->head < p->tail && p->n < p->r->max_requests) {
            const waiting_t *w = &p->queue[p->head];
            if (p->n && sum + entry(p, w) > p->r->pool_blocks) break;
            request_t *q = &p->running[p->n++];
            memset(q, 0, sizeof *q);
            q->at = w->at;
            q->prompt = p->c->prompt[w->at];
            q->output = p->c->output[w->at];
            q->out = w->out;
            q->reserved_blocks = blocks_of(p->r, p->c->reserved[w->at]);
            sum += most(q->reserved_blocks, blocks_of(p->r, known(q)));
            if (p->c->admitted_ps[w->at] < 0) p->c->admitted_ps[w->at] = p->now_ps;
            p->head++;
        }
    }
    p->t.most_waiting = most(p->t.most_waiting, p->tail - p->head);
}

static void arrive(replica_t *p, whole at) {
    const rules_t *r = p->r;
    if (blocks_of(r, p->c->prompt[at] + p->c->output[at] - 1) > r->pool_blocks) {
        p->c->status[at] = 1;
        return;
    }
    if (r->queue_limit && p->tail - p->head >= r->queue_limit) admit(p);
    if (r->queue_limit && p->tail - p->head >= r->queue_limit) {
        p->c->status[at] = 2;
        return;
    }
    p->queue[p->tail++] = (waiting_t){at, 0};
}

/* Those who have come by then. */
static void meet(replica_t *p, whole by_ps) {
    while (p->next < p->last && p->c->arrival_ps[p->mine[p->next]] <= by_ps) arrive(p, p->mine[p->next++]);
}

static void make_way(replica_t *p, whole i) {
    request_t *q = &p->running[i];
    p->c->preemptions[q->at]++;
    p->held -= q->held;
    p->queue[--p->head] = (waiting_t){q->at, q->out};
    memmove(q, q + 1, (size_t)(p->n - i - 1) * sizeof *q);
    p->n--;
}

/* 1 where it has the blocks; 0 where it made way itself. */
static int place(replica_t *p, whole i, whole count) {
    for (;;) {
        request_t *q = &p->running[i];
        whole more = blocks_of(p->r, q->computed + count) - q->held;
        if (more <= 0 || p->n == 1 || p->held + more <= p->r->pool_blocks) {
            if (more > 0) {
                q->held += more;
                p->held += more;
            }
            q->row = count;
            return 1;
        }
        whole victim = p->n - 1;
        while (p->running[victim].row) victim--;
        make_way(p, victim);
        if (victim == i) return 0;
    }
}

static void end_of_step(replica_t *p) {
    whole kept = 0;
    for (whole i = 0; i < p->n; i++) {
        request_t *q = &p->running[i];
        if (q->out == q->output) {
            p->c->end_ps[q->at] = p->now_ps;
            p->held -= q->held;
        } else {
            if (kept != i) p->running[kept] = *q;
            kept++;
        }
    }
    p->n = kept;
}

static void one_step(replica_t *p) {
    const rules_t *r = p->r;
    whole budget = r->batch_tokens, decodes = 0, prompts = 0, read = 0, pairs = 0;
    for (whole i = 0; i < p->n; i++) p->running[i].row = 0;
    for (whole i = 0; i < p->n && budget;) {
        if (!is_decoding(&p->running[i])) {
            i++;
        } else if (place(p, i, 1)) {
            budget--;
            decodes++;
            i++;
        }
    }
    for (whole i = 0; i < p->n;) {
        request_t *q = &p->running[i];
        if (is_decoding(q)) {
            i++;
            continue;
        }
        whole count = least(known(q) - q->computed, budget);
        if (count < 1) break;
        if (place(p, i, count)) {
            budget -= count;
            prompts += count;
            i++;
        }
    }
    for (whole i = 0; i < p->n; i++)
        if (p->running[i].row) {
            const request_t *q = &p->running[i];
            read += q->computed;
            if (!is_decoding(q)) pairs += q->row * q->computed;
        }
    whole took = r->step_ps + r->prompt_token_ps * prompts + r->decode_ps * decodes +
                 r->kv_token_ps * read + r->pair_ps * pairs;
    p->now_ps += took;
    p->t.steps++;
    p->t.busy_ps += took;
    if (p->held > r->over_blocks) p->t.over_ps += took;
    p->t.peak_blocks = most(p->t.peak_blocks, p->held);
    p->t.most_running = most(p->t.most_running, p->n);
    p->t.last_ps = p->now_ps;
    for (whole i = 0; i < p->n; i++) {
        request_t *q = &p->running[i];
        if (!q->row) continue;
        q->computed += q->row;
        if (q->computed == known(q)) {
            q->out++;
            if (p->c->first_ps[q->at] < 0) p->c->first_ps[q->at] = p->now_ps;
        }
    }
    end_of_step(p);
}

/* So many steps, from one that takes ``first`` on, each taking ``more`` than the one before. */
static inline whole steps_ps(whole steps, whole first, whole more) {
    return steps * first + more * (steps * (steps - 1) / 2);
}

/* As many pure decode steps as nothing interrupts; 0 where the next one needs a closer look. */
static whole many_steps(replica_t *p) {
    const rules_t *r = p->r;
    whole n = p->n, count = INT64_MAX, read = 0, needed = 0;
    whole next_arrival_ps = p->next < p->last ? p->c->arrival_ps[p->mine[p->next]] : -1;
    if (n > r->batch_tokens) return 0;
    for (whole i = 0; i < n; i++) {
        const request_t *q = &p->running[i];
        if (!is_decoding(q)) return 0;
        count = least(count, q->output - q->out);
        read += q->computed;
    }
    whole first = r->step_ps + r->decode_ps * n + r->kv_token_ps * read, more = r->kv_token_ps * n;
    if (p->head == p->tail && n < r->max_requests && next_arrival_ps >= 0) {
        /* The fewest steps after which the newcomer is there. */
        whole low = 1, high = count, wanted = next_arrival_ps - p->now_ps;
        if (steps_ps(count, first, more) > wanted)
            while (low < high) {
                whole middle = low + (high - low) / 2;
                if (steps_ps(middle, first, more) >= wanted) high = middle;
                else low = middle + 1;
            }
        count = high;
    }
    for (whole i = 0; i < n; i++)
        needed += most(p->running[i].held, blocks_of(r, p->running[i].computed + count));
    whole over_from = p->held > r->over_blocks ? 0 : count;
    if (needed > least(r->over_blocks, n == 1 ? needed : r->pool_blocks)) {
        /* Step by step, how many requests open a block in it. */
        memset(p->ring, 0, (size_t)r->block_tokens * sizeof *p->ring);
        for (whole i = 0; i < n; i++) {
            whole room = p->running[i].held * r->block_tokens - p->running[i].computed;
            if (room < count) p->ring[room % r->block_tokens]++;
        }
        /* One with more room than a block has none to open before that: its turn is counted apart. */
        whole held = p->held, step;
        for (step = 0; step < count; step++) {
            whole opened = 0;
            if (p->ring[step % r->block_tokens])
                for (whole i = 0; i < n; i++) {
                    whole room = p->running[i].held * r->block_tokens - p->running[i].computed;
                    opened += step >= room && (step - room) % r->block_tokens == 0;
                }
            if (n > 1 && held + opened > r->pool_blocks) break;
            held += opened;
            if (held > r->over_blocks && step < over_from) over_from = step;
        }
        count = step;
        if (!count) return 0;
        needed = held;
    }
    whole took = steps_ps(count, first, more);
    over_from = least(over_from, count);
    p->t.over_ps += took - steps_ps(over_from, first, more);
    p->now_ps += took;
    p->t.steps += count;
    p->t.busy_ps += took;
    p->t.last_ps = p->now_ps;
    p->held = 0;
    whole ended = 0;
    for (whole i = 0; i < n; i++) {
        request_t *q = &p->running[i];
        q->computed += count;
        q->out += count;
        q->held = most(q->held, blocks_of(r, q->computed));
        p->held += q->held;
        ended |= q->out == q->output;
    }
    p->t.peak_blocks = most(p->t.peak_blocks, p->held);
    p->t.most_running = most(p->t.most_running, n);
    /* Who came before the last of these steps found nobody gone yet. */
    meet(p, p->now_ps - (first + more * (count - 1)));
    p->t.most_waiting = most(p->t.most_waiting, p->tail - p->head);
    if (ended) end_of_step(p);
    return count;
}

/* ``mine``: the rows of each replica one after another, from first[replica] to first[replica + 1].
 * ``totals``: [7][replicas]. 0, or -1 without memory. */
int memplan_simulate(const rules_t *rules, const columns_t *columns, const whole *mine,
                     const whole *first, whole replicas, whole *totals) {
    whole longest = 0;
    for (whole one = 0; one < replicas; one++) longest = most(longest, first[one + 1] - first[one]);
    request_t *running = malloc((size_t)rules->max_requests * sizeof *running);
    /* Those that make way were taken from the front before: as many places are free there. */
    waiting_t *queue = malloc((size_t)(longest + rules->max_requests + 1) * sizeof *queue);
    whole *ring = malloc((size_t)rules->block_tokens * sizeof *ring);
    int result = running && queue && ring ? 0 : -1;
    for (whole one = 0; !result && one < replicas; one++) {
        replica_t p = {.r = rules, .c = columns, .running = running, .queue = queue, .ring = ring};
        p.head = p.tail = rules->max_requests;
        p.mine = mine;
        p.next = first[one];
        p.last = first[one + 1];
        while (p.next < p.last || p.head < p.tail || p.n) {
            if (p.head == p.tail && !p.n) p.now_ps = most(p.now_ps, columns->arrival_ps[mine[p.next]]);
            meet(&p, p.now_ps);
            admit(&p);
            if (p.n && !many_steps(&p)) one_step(&p);
        }
        const whole *found = (const whole *)&p.t;
        for (int at = 0; at < 7; at++) totals[at * replicas + one] = found[at];
    }
    free(running);
    free(queue);
    free(ring);
    return result;
}
