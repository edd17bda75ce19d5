/* A plain server to measure against: a thread a connection, two system calls a request, the course's linear model.
   It trusts its client; what it does not understand ends the connection.

   Build: cc -O2 -pthread predict.c -o predict     Start: ./predict PORT */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FEATURES = 5, BUFFER = 1 << 18, HEAD_ROOM = 256 };

static const double WEIGHTS[FEATURES] = {0.5, -0.3, 0.8, -0.2, 0.4};
static const double BIAS = 0.1;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

/* Receive until buf holds `end` bytes -> how many there are; 0 when the client is gone or sends too much. */
static size_t receive(int fd, char *buf, size_t n, size_t end) {
    while (n < end) {
        ssize_t r = recv(fd, buf + n, BUFFER - 1 - n, 0);
        if (r <= 0) return 0;
        buf[n += r] = 0;
    }
    return n;
}

/* The shortest text that reads back to the same double. */
static char *put_double(char *out, double value) {
    char text[32];
    for (int digits = 15; digits <= 17; digits++) {
        sprintf(text, "%.*g", digits, value);
        if (digits == 17 || strtod(text, NULL) == value) break;
    }
    return stpcpy(out, text);
}

static char *skip(char *p) {
    while (*p == ' ' || *p == ',') p++;
    return p;
}

/* Answer one JSON body -> the end of the response's body; NULL for what is no predict request. */
static char *predict(char *body, char *out) {
    char *p = strstr(body, "\"inputs\":");
    if (!p || !(p = strchr(p, '['))) return NULL;
    out = stpcpy(out, "{\"predictions\": [");
    const char *separator = "";
    for (p = skip(p + 1); *p == '['; p = skip(p + 1)) {
        double score = 0;
        p++;
        for (int i = 0; i < FEATURES; i++, p = skip(p)) score += WEIGHTS[i] * strtod(p, &p);
        if (!(p = strchr(p, ']'))) return NULL;
        out = put_double(stpcpy(out, separator), score + BIAS);
        separator = ", ";
    }
    return out;
}

static void *serve(void *argument) {
    int fd = (int)(intptr_t)argument;
    char *buf = malloc(BUFFER), *out = malloc(BUFFER);
    size_t n = 0;
    for (;;) {
        char *head_end;
        buf[n] = 0;
        while (!(head_end = strstr(buf, "\r\n\r\n")))
            if (!(n = receive(fd, buf, n, n + 1))) goto done;
        double start = now_ms();
        char *length = strcasestr(buf, "content-length:"), *body = head_end + 4;
        size_t end = body - buf + (length ? strtoul(length + 15, NULL, 10) : 0);
        if (end >= BUFFER || !(n = receive(fd, buf, n, end))) goto done;

        char *answer = out + HEAD_ROOM, *o = predict(body, answer), head[HEAD_ROOM];
        if (!o) goto done;
        o += sprintf(o, "], \"model\": \"fraud-detector\", \"version\": \"1.0.0\", \"latency_ms\": %.4f}",
                     now_ms() - start);
        int k = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %td\r\n\r\n",
                        o - answer);
        memcpy(answer - k, head, k);
        if (send(fd, answer - k, o - answer + k, MSG_NOSIGNAL) <= 0) goto done;
        memmove(buf, buf + end, n - end);
        n -= end;
    }
done:
    close(fd);
    free(buf);
    free(out);
    return NULL;
}

int main(int argc, char **argv) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (argc != 2) return fprintf(stderr, "usage: predict PORT\n"), 2;
    address.sin_port = htons(atoi(argv[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* accepted sockets inherit it */
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return perror("predict"), 1;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd < 0) continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd)) close(fd);
        else pthread_detach(thread);
    }
}
