/* The load: talks to a server on the loopback interface, checks every byte of its answers, and reports one line of JSON.

   It is in C because a load in Python would be slower than the servers that it is to measure.  One thread, one epoll
   instance; usage() lists what it can do.  All bytes repeat one pattern, which the servers have too: random, and
   so long that data in the wrong place, or of another connection, is not what is expected there.

   It fails, with a line on standard error that says why, at the first wrong byte, lost connection, or 10 seconds of
   silence. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    PERIOD = 17 * 65536,      /* bytes after which the pattern repeats */
    AT_ONCE = 256 * 1024,     /* bytes sent or received at a time, at most */
    LONGEST = 1024 * 1024,    /* bytes of a request or an answer, at most */
    SILENCE = 10,             /* seconds without any progress after which the server has failed */
    SOURCE_ADDRESSES = 64,    /* see one_exchange */
    SENDFILE = 16 * 1024,     /* bytes from which not copying them saves the load some time */
};

static unsigned char pattern[PERIOD + LONGEST]; /* what is at its end is its beginning again, so nothing ever wraps */
static int pattern_file;
static unsigned char received[AT_ONCE];

static struct {
    const char *mode;
    int port;
    int connections;
    size_t request, answer; /* bytes */
    uint64_t stream;        /* bytes */
    double seconds, warm_up;
    int server; /* its process id */
} options = {.connections = 1, .request = 64, .answer = 64, .stream = 1 << 30, .seconds = 1};

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static void __attribute__((noreturn)) fail_call(const char *call)
{
    if (errno == EAGAIN)
        fail("%s: nothing happened for %d seconds", call, SILENCE);
    fail("%s: %s", call, strerror(errno));
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Latencies, in a histogram whose buckets are a 64th of a power of two wide: no figure is off by more than 1.6 %. */

enum { STEPS = 64, STEP_BITS = 6 };

static uint64_t histogram[64 * STEPS];
static uint64_t recorded;

static int bucket_of(uint64_t value)
{
    if (value < STEPS)
        return (int)value;
    int shift = 63 - __builtin_clzll(value) - STEP_BITS;
    return (shift + 1) * STEPS + (int)((value >> shift) - STEPS);
}

static double middle_of(int bucket)
{
    if (bucket < STEPS)
        return bucket;
    int shift = bucket / STEPS - 1;
    uint64_t low = (uint64_t)(STEPS + bucket % STEPS) << shift;
    return (double)low + (double)((1ULL << shift) - 1) / 2;
}

static void record(uint64_t value)
{
    histogram[bucket_of(value)]++;
    recorded++;
}

/* The smallest recorded value that at least this share of all does not exceed. */
static double percentile(double share)
{
    uint64_t up_to = 0;
    for (int bucket = 0; bucket < 64 * STEPS; bucket++) {
        up_to += histogram[bucket];
        if (up_to && (double)up_to >= share * (double)recorded)
            return middle_of(bucket);
    }
    return 0;
}

/* What is measured: between begin_window() and end_window(). */

/* The times of a process, in seconds: how long it ran, and how long it waited while another had its core. */
struct schedule {
    double ran, waited;
};

static struct {
    int64_t time;
    struct schedule load, server;
} window, elapsed;

static struct schedule schedule_of(int process)
{
    char name[64];
    clockid_t clock;
    struct timespec ran = {0};
    unsigned long long waited = 0;
    snprintf(name, sizeof name, "/proc/%d/schedstat", process);
    FILE *file = fopen(name, "r");
    if (!file || fscanf(file, "%*u %llu", &waited) != 1)
        waited = 0; /* the kernel does not report it */
    if (file)
        fclose(file);
    if (process && clock_getcpuclockid(process, &clock) == 0)
        clock_gettime(clock, &ran);
    return (struct schedule){(double)ran.tv_sec + (double)ran.tv_nsec / 1e9, (double)waited / 1e9};
}

static void begin_window(void)
{
    window.server = schedule_of(options.server);
    window.load = schedule_of(getpid());
    window.time = nanoseconds();
}

static struct schedule since(struct schedule now, struct schedule then)
{
    return (struct schedule){now.ran - then.ran, now.waited - then.waited};
}

static void end_window(void)
{
    elapsed.time = nanoseconds() - window.time;
    elapsed.load = since(schedule_of(getpid()), window.load);
    elapsed.server = since(schedule_of(options.server), window.server);
}

static void report(uint64_t operations, uint64_t bytes)
{
    double seconds = (double)elapsed.time / 1e9;
    printf("{\"operations\": %llu, \"bytes\": %llu, \"seconds\": %.6f", (unsigned long long)operations,
           (unsigned long long)bytes, seconds);
    printf(", \"load_cpu\": %.3f, \"server_cpu\": %.3f", elapsed.load.ran / seconds, elapsed.server.ran / seconds);
    printf(", \"disturbed\": %.3f", (elapsed.load.waited + elapsed.server.waited) / seconds);
    if (recorded)
        printf(", \"median_us\": %.1f, \"p99_us\": %.1f", percentile(0.5) / 1e3, percentile(0.99) / 1e3);
    printf("}\n");
}

/* Sockets. */

/* Whether a connection is closed after one answer, and replaced.

   A closed connection keeps its client's port for a minute, and an address has 28,000 of them by default: so these are
   made from many addresses in turn, all of which are this machine. */
static bool one_exchange;

/* A socket that is connected to the server, or, if it does not block, will be. */
static int open_connection(int flags)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    if (fd < 0)
        fail_call("socket");
    if (one_exchange) {
        static unsigned turn;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + turn++ % SOURCE_ADDRESSES);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
            fail_call("bind");
    } else
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)options.port);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        fail_call("connect");
    return fd;
}

static void check(size_t offset, size_t size)
{
    if (memcmp(received, pattern + offset, size) == 0)
        return;
    size_t wrong = 0;
    while (received[wrong] == pattern[offset + wrong])
        wrong++;
    fail("wrong data: byte %zu of %zu received is %d, not %d", wrong, size, received[wrong], pattern[offset + wrong]);
}

/* Requests and answers on many connections, one request at a time on each. */

struct connection {
    int fd;
    size_t offset;  /* where in the pattern the answer begins, and the request */
    size_t unsent;  /* bytes of the request that are not sent yet */
    size_t missing; /* bytes of the answer that have not come yet */
    bool closing;   /* whether the answer has come, and what misses is the server's end of the connection */
    int64_t began;
};

static int epoll;
static int unanswered;       /* connections with a request */
static bool same_answer;     /* whether the answer is always the beginning of the pattern, not what was sent */
static bool going_on;        /* whether an answer is followed by the next request */
static int64_t window_begins;
static uint64_t operations;  /* in the window */

static void make_ready(struct connection *connection)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = connection};
    connection->fd = open_connection(SOCK_NONBLOCK);
    connection->closing = false;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        fail_call("epoll_ctl");
}

static void send_request(struct connection *connection)
{
    while (connection->unsent) {
        off_t start = (off_t)(connection->offset + (options.request - connection->unsent));
        ssize_t sent = connection->unsent < SENDFILE
                           ? send(connection->fd, pattern + start, connection->unsent, MSG_NOSIGNAL)
                           : sendfile(connection->fd, pattern_file, &start, connection->unsent);
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0)
            fail_call("send");
        connection->unsent -= (size_t)sent;
    }
}

static void begin_request(struct connection *connection)
{
    connection->began = nanoseconds();
    if (one_exchange)
        make_ready(connection);
    connection->unsent = options.request;
    connection->missing = options.answer;
    unanswered++;
    send_request(connection);
}

static void completed(struct connection *connection)
{
    unanswered--;
    if (!same_answer)
        connection->offset = (connection->offset + options.request) % PERIOD;
    if (!going_on)
        return;
    int64_t now = nanoseconds();
    if (window.time) {
        operations++;
        record((uint64_t)(now - connection->began));
        if (now >= window.time + (int64_t)(options.seconds * 1e9)) {
            end_window();
            going_on = false;
            return;
        }
    } else if (now >= window_begins)
        begin_window();
    begin_request(connection);
}

static void receive_answer(struct connection *connection)
{
    for (;;) {
        ssize_t size = recv(connection->fd, received, sizeof received, 0);
        if (size < 0 && errno == EAGAIN)
            return;
        if (size < 0)
            fail_call("recv");
        if (size == 0 && connection->closing) {
            close(connection->fd);
            completed(connection);
            return;
        }
        if (size == 0)
            fail("the server closed a connection, and %zu bytes are missing", connection->missing);
        if ((size_t)size > connection->missing)
            fail("the server sent %zu bytes where %zu were missing", (size_t)size, connection->missing);
        check(connection->offset + (options.answer - connection->missing), (size_t)size);
        connection->missing -= (size_t)size;
        if (!connection->missing) {
            if (connection->unsent)
                fail("the server answered before it was asked");
            if (!one_exchange) {
                completed(connection);
                return;
            }
            shutdown(connection->fd, SHUT_WR);
            connection->closing = true;
            return;
        }
        if ((size_t)size < sizeof received)
            return;
    }
}

static void wait_for_answers(void)
{
    struct epoll_event events[512];
    while (unanswered) {
        int count = epoll_wait(epoll, events, 512, SILENCE * 1000);
        if (count < 0)
            fail_call("epoll_wait");
        if (count == 0)
            fail("no answer for %d seconds; %d are missing", SILENCE, unanswered);
        for (int i = 0; i < count; i++) {
            send_request(events[i].data.ptr);
            receive_answer(events[i].data.ptr);
        }
    }
}

static struct connection *new_connections(void)
{
    struct connection *connections = calloc((size_t)options.connections, sizeof *connections);
    epoll = epoll_create1(0);
    for (int i = 0; i < options.connections; i++)
        connections[i].offset = same_answer ? 0 : (size_t)i * 40503 % PERIOD;
    return connections;
}

/* Open all connections, one after the other: each has had an answer before the next, so no server is overrun. */
static struct connection *open_all(void)
{
    struct connection *connections = new_connections();
    for (int i = 0; i < options.connections; i++) {
        make_ready(connections + i);
        begin_request(connections + i);
        wait_for_answers();
    }
    return connections;
}

static void exchange(struct connection *connections)
{
    going_on = true;
    window_begins = nanoseconds() + (int64_t)(options.warm_up * 1e9);
    for (int i = 0; i < options.connections; i++)
        begin_request(connections + i);
    wait_for_answers();
    report(operations, operations * options.answer);
}

/* Streams on one connection. */

static int open_stream(void)
{
    struct timeval silence = {.tv_sec = SILENCE};
    int fd = open_connection(0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &silence, sizeof silence);
    return fd;
}

static void send_all(int fd, const void *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            fail_call("send");
        data = (const char *)data + sent;
        size -= (size_t)sent;
    }
}

static size_t receive_some(int fd)
{
    ssize_t size = recv(fd, received, sizeof received, 0);
    if (size < 0)
        fail_call("recv");
    return (size_t)size;
}

static void stream_out(uint64_t size)
{
    uint64_t count = 0, request = htobe64(size);
    int fd = open_stream();
    begin_window();
    send_all(fd, &request, sizeof request);
    for (size_t more; (more = receive_some(fd)); count += more)
        check(count % PERIOD, more);
    end_window();
    if (count != size)
        fail("the server sent %llu bytes, not %llu", (unsigned long long)count, (unsigned long long)size);
    close(fd);
}

static void stream_in(uint64_t size)
{
    uint64_t count = 0, receipt = htobe64(size);
    int fd = open_stream();
    begin_window();
    send_all(fd, &receipt, sizeof receipt);
    while (count < size) {
        size_t more = size - count < AT_ONCE ? (size_t)(size - count) : AT_ONCE;
        send_all(fd, pattern + count % PERIOD, more);
        count += more;
    }
    if (receive_some(fd) != sizeof receipt)
        fail("no receipt");
    end_window();
    memcpy(&receipt, received, sizeof receipt);
    if (be64toh(receipt) != size)
        fail("the server received %llu bytes, not %llu", (unsigned long long)be64toh(receipt),
             (unsigned long long)size);
    close(fd);
}

static void stream(void (*once)(uint64_t))
{
    once(options.stream / 16); /* the warm-up */
    once(options.stream);
    report(1, options.stream);
}

/* The command line. */

static void read_pattern(const char *name)
{
    pattern_file = open(name, O_RDONLY);
    if (pattern_file < 0 || read(pattern_file, pattern, sizeof pattern) != sizeof pattern)
        fail("%s has not the %zu bytes of the pattern", name, sizeof pattern);
}

static void __attribute__((noreturn)) usage(void)
{
    fputs("usage: load MODE --pattern FILE --port PORT [OPTION VALUE]...\n"
          "\n"
          "  echo        on each of --connections, send --request bytes, receive them, and repeat\n"
          "  burst       the same, but what comes back are --answer bytes, the beginning of the pattern\n"
          "  connect     connect, send --request bytes, receive them, and close; repeat\n"
          "  stream-out  ask for --stream bytes (8 bytes, big-endian), receive them, and the end of the connection\n"
          "  stream-in   send their number and --stream bytes, and receive the number of them that came\n"
          "  hold        open --connections, echo --request bytes on each, say 'held', and wait for the end of input\n"
          "\n"
          "The first three go on for --warm-up seconds that do not count, and --seconds that do.\n"
          "--server is the process whose processor time is reported beside the load's own.\n",
          stderr);
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"pattern", 1, 0, 'f'}, {"port", 1, 0, 'p'},    {"connections", 1, 0, 'c'}, {"request", 1, 0, 'r'},
        {"answer", 1, 0, 'a'},  {"stream", 1, 0, 's'},  {"seconds", 1, 0, 't'},     {"warm-up", 1, 0, 'w'},
        {"server", 1, 0, 'i'},  {0},
    };
    for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (option) {
        case 'f': read_pattern(optarg); break;
        case 'p': options.port = atoi(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'r': options.request = options.answer = strtoul(optarg, NULL, 10); break;
        case 'a': options.answer = strtoul(optarg, NULL, 10); break;
        case 's': options.stream = strtoull(optarg, NULL, 10); break;
        case 't': options.seconds = atof(optarg); break;
        case 'w': options.warm_up = atof(optarg); break;
        case 'i': options.server = atoi(optarg); break;
        default: usage();
        }
    }
    if (optind != argc - 1 || !options.port || options.request > LONGEST || options.answer > LONGEST)
        usage();
    options.mode = argv[optind];

    if (strcmp(options.mode, "echo") == 0)
        exchange(open_all());
    else if (strcmp(options.mode, "burst") == 0) {
        same_answer = true;
        exchange(open_all());
    } else if (strcmp(options.mode, "connect") == 0) {
        one_exchange = true;
        exchange(new_connections());
    } else if (strcmp(options.mode, "stream-out") == 0)
        stream(stream_out);
    else if (strcmp(options.mode, "stream-in") == 0)
        stream(stream_in);
    else if (strcmp(options.mode, "hold") == 0) {
        open_all();
        puts("held");
        fflush(stdout);
        while (getchar() != EOF)
            ;
    } else
        usage();
    return 0;
}
