/* The floor: what one thread of C with epoll does of the same work, with nothing around it.

   usage: epoll WORK PATTERN, where WORK is echo, send, receive or burst, and PATTERN the name of a file.

   To be short it is not quite a server: where a peer does not take an answer, all others wait. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PERIOD = 17 * 65536, CHUNK = 65536, PIECE = 64, PIECES = 1000, BACKLOG = 1024 };

struct connection {
    int fd;
    uint64_t size, count; /* of the stream that is received, once its size is known */
};

static char pattern[PERIOD];
static char data[CHUNK];

static void send_all(int fd, const char *rest, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, rest, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            poll(&writable, 1, -1);
        } else if (sent < 0)
            return; /* receiving will report it */
        else {
            rest += sent;
            size -= (size_t)sent;
        }
    }
}

static void echo(struct connection *connection, size_t size)
{
    send_all(connection->fd, data, size);
}

static void send_stream(struct connection *connection, size_t size)
{
    uint64_t total;
    if (size != sizeof total)
        abort();
    memcpy(&total, data, sizeof total);
    total = be64toh(total);
    for (uint64_t count = 0; count < total; count += CHUNK)
        send_all(connection->fd, pattern + count % PERIOD, total - count < CHUNK ? (size_t)(total - count) : CHUNK);
    shutdown(connection->fd, SHUT_WR);
}

static void receive_stream(struct connection *connection, size_t size)
{
    if (!connection->size) {
        if (size < sizeof connection->size)
            abort();
        memcpy(&connection->size, data, sizeof connection->size);
        connection->size = be64toh(connection->size);
        size -= sizeof connection->size;
    }
    connection->count += size;
    if (connection->count == connection->size) {
        uint64_t receipt = htobe64(connection->count);
        send_all(connection->fd, (const char *)&receipt, sizeof receipt);
    }
}

/* 1,000 small pieces, gathered and sent at once. */
static void burst(struct connection *connection, size_t size)
{
    (void)size;
    for (int piece = 0; piece < PIECES; piece++)
        memcpy(data + piece * PIECE, pattern + piece * PIECE, PIECE);
    send_all(connection->fd, data, PIECES * PIECE);
}

static const struct {
    const char *name;
    void (*handle_input)(struct connection *, size_t);
} works[] = {{"echo", echo}, {"send", send_stream}, {"receive", receive_stream}, {"burst", burst}, {0}};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_on_loopback(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, BACKLOG) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("listen");
    printf("ready %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static void watch(int epoll, int fd)
{
    struct connection *connection = calloc(1, sizeof *connection);
    connection->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

int main(int argc, char **argv)
{
    int work = 0;
    FILE *file = argc == 3 ? fopen(argv[2], "rb") : NULL;
    while (argc == 3 && works[work].name && strcmp(works[work].name, argv[1]) != 0)
        work++;
    if (!file || !works[work].name || fread(pattern, 1, PERIOD, file) != PERIOD) {
        fputs("usage: epoll echo|send|receive|burst PATTERN\n", stderr);
        return 2;
    }

    int epoll = epoll_create1(0), listener = listen_on_loopback(), one = 1;
    watch(epoll, listener);
    for (;;) {
        struct epoll_event events[512];
        int count = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection->fd == listener) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0; watch(epoll, fd))
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                continue;
            }
            ssize_t size = recv(connection->fd, data, sizeof data, 0);
            if (size > 0)
                works[work].handle_input(connection, (size_t)size);
            else if (size == 0 || errno != EAGAIN) {
                close(connection->fd);
                free(connection);
            }
        }
    }
}
