/* An Mbed TLS 3.6 DTLS 1.2 peer with connection IDs (RFC 9146): (client|server) PORT [name=value]...
 *
 *   suite=NAME        the one suite that it has, as Mbed TLS names it
 *   cid=HEX           its own connection ID; "cid=" = it needs none; left out = it knows no connection IDs
 *   certificate=FILE key=FILE    what it shows; without them PSK_IDENTITY and PSK_KEY (in hex) are in the environment
 *   authority=FILE    whom it trusts
 *   fragment=CODE     of max_fragment_length, RFC 6066: a client asks for records of so many bytes (1 = 512)
 *
 * It does what it is told on standard input, a line each: "send TEXT", "rebind" (goes on from another port),
 * "reconnect" (a client closes, and resumes its session), "close". After each handshake it says "suite NAME",
 * "own-cid HEX" and "peer-cid HEX" (or "none"), "connected"; then "received TEXT", "rebound PORT" (its own), "moved
 * PORT" (the other side's), "closed" (by the other side), and whenever it gives up "failed: WHY". A server answers
 * all that it receives with "heard" before it, at the address that the newest record came from.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_cookie.h>
#include <mbedtls/timing.h>
#include <poll.h>
#include <psa/crypto.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LARGEST 20000
#define TICK_MILLISECONDS 20 /* how often the handshake looks at its timer */

static mbedtls_ctr_drbg_context generator;

static const char *option(char **arguments, const char *name) {
    for (size_t length = strlen(name); *arguments != NULL; arguments++) {
        if (strncmp(*arguments, name, length) == 0 && (*arguments)[length] == '=') {
            return *arguments + length + 1;
        }
    }
    return NULL;
}

static void check(int result, const char *what) {
    if (result < 0) {
        char why[120];
        mbedtls_strerror(result, why, sizeof why);
        printf("failed: %s: %s\n", what, why);
        exit(1);
    }
}

static size_t from_hex(const char *text, unsigned char *bytes, size_t room) {
    size_t length = 0;
    for (; text[0] != '\0' && text[1] != '\0' && length < room; text += 2) {
        unsigned int value = 0;
        sscanf(text, "%2x", &value);
        bytes[length++] = (unsigned char) value;
    }
    return length;
}

/* --- the socket, never connected: both its own and the other side's address may change --- */

typedef struct {
    int socket;
    struct sockaddr_in peer;
    struct sockaddr_in sender; /* of the last datagram */
    bool follows;              /* where the other side goes */
    const char *cid;
} link_t;

static struct sockaddr_in local(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short) port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int bound_socket(int port) {
    struct sockaddr_in address = local(port);
    int result = socket(AF_INET, SOCK_DGRAM, 0);
    if (result < 0 || bind(result, (struct sockaddr *) &address, sizeof address) < 0) {
        printf("failed: bind: %s\n", strerror(errno));
        exit(1);
    }
    return result;
}

static void rebind(link_t *link) {
    int old = link->socket;
    link->socket = bound_socket(0); /* before the old one is closed, so that it is another port */
    close(old);
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    getsockname(link->socket, (struct sockaddr *) &address, &length);
    printf("rebound %d\n", ntohs(address.sin_port));
}

static int send_datagram(void *context, const unsigned char *data, size_t length) {
    link_t *link = context;
    /* A datagram that cannot be sent is a lost one. */
    (void) sendto(link->socket, data, length, 0, (struct sockaddr *) &link->peer, sizeof link->peer);
    return (int) length;
}

static int receive_datagram(void *context, unsigned char *data, size_t room) {
    link_t *link = context;
    socklen_t length = sizeof link->sender;
    ssize_t count = recvfrom(link->socket, data, room, MSG_DONTWAIT, (struct sockaddr *) &link->sender, &length);
    return count < 0 ? MBEDTLS_ERR_SSL_WANT_READ : (int) count;
}

/* --- the conversation --- */

static void say_cid(const char *whose, int enabled, const unsigned char *cid, size_t length) {
    bool used = enabled == MBEDTLS_SSL_CID_ENABLED && length > 0;
    printf("%s %s", whose, used ? "" : "none");
    for (size_t i = 0; used && i < length; i++) {
        printf("%02x", cid[i]);
    }
    printf("\n");
}

/* Whether the other side's records carry a connection ID. */
static bool say_what_is_negotiated(mbedtls_ssl_context *ssl) {
    unsigned char cid[MBEDTLS_SSL_CID_OUT_LEN_MAX];
    size_t length = 0;
    int enabled = 0;
    printf("suite %s\n", mbedtls_ssl_get_ciphersuite(ssl));
    check(mbedtls_ssl_get_peer_cid(ssl, &enabled, cid, &length), "the peer's connection ID");
    say_cid("peer-cid", enabled, cid, length);
    if (enabled == MBEDTLS_SSL_CID_ENABLED) { /* the next call only says what was asked for */
        check(mbedtls_ssl_get_own_cid(ssl, &enabled, cid, &length), "own connection ID");
    }
    say_cid("own-cid", enabled, cid, length);
    printf("connected\n");
    return enabled == MBEDTLS_SSL_CID_ENABLED && length > 0;
}

static void handshake(mbedtls_ssl_context *ssl, link_t *link, bool server) {
    unsigned char bytes[MBEDTLS_SSL_CID_IN_LEN_MAX];
    size_t length = link->cid != NULL ? from_hex(link->cid, bytes, sizeof bytes) : 0;
    int result;
    do { /* Mbed TLS starts afresh after a HelloVerifyRequest */
        if (server) {
            const unsigned char *address = (const unsigned char *) &link->peer;
            check(mbedtls_ssl_set_client_transport_id(ssl, address, sizeof link->peer), "address");
        }
        if (link->cid != NULL) {
            check(mbedtls_ssl_set_cid(ssl, MBEDTLS_SSL_CID_ENABLED, bytes, length), "connection ID");
        }
        while ((result = mbedtls_ssl_handshake(ssl)) == MBEDTLS_ERR_SSL_WANT_READ) {
            struct pollfd source = {.fd = link->socket, .events = POLLIN};
            poll(&source, 1, TICK_MILLISECONDS);
        }
        if (result == MBEDTLS_ERR_SSL_HELLO_VERIFY_REQUIRED) {
            check(mbedtls_ssl_session_reset(ssl), "reset");
        }
    } while (result == MBEDTLS_ERR_SSL_HELLO_VERIFY_REQUIRED);
    check(result, "handshake");
    link->follows = say_what_is_negotiated(ssl);
}

static void reconnect(mbedtls_ssl_context *ssl, link_t *link) {
    mbedtls_ssl_session session;
    mbedtls_ssl_session_init(&session);
    check(mbedtls_ssl_get_session(ssl, &session), "session");
    check(mbedtls_ssl_close_notify(ssl), "close");
    check(mbedtls_ssl_session_reset(ssl), "reset");
    check(mbedtls_ssl_set_session(ssl, &session), "session");
    mbedtls_ssl_session_free(&session);
    handshake(ssl, link, false);
}

static void write_text(mbedtls_ssl_context *ssl, const char *text) {
    check(mbedtls_ssl_write(ssl, (const unsigned char *) text, strlen(text)), "write");
}

/* Reads what has come; false = the other side has closed. */
static bool hear(mbedtls_ssl_context *ssl, link_t *link, bool answers) {
    char text[LARGEST] = "heard ";
    char *heard = text + strlen(text);
    while (true) {
        int count = mbedtls_ssl_read(ssl, (unsigned char *) heard, LARGEST - 1 - (size_t) (heard - text));
        if (count == MBEDTLS_ERR_SSL_WANT_READ) {
            return true;
        }
        if (count == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY) {
            return false;
        }
        check(count, "read");
        heard[count] = '\0';
        if (link->follows && link->sender.sin_port != link->peer.sin_port) {
            /* Where the other side is the program's business; the library has authenticated the record. */
            link->peer = link->sender;
            printf("moved %d\n", ntohs(link->peer.sin_port));
        }
        printf("received %s\n", heard);
        if (answers) {
            write_text(ssl, text);
        }
    }
}

/* Does what is typed; false = that was the end. */
static bool obey(mbedtls_ssl_context *ssl, link_t *link) {
    char line[LARGEST];
    if (fgets(line, sizeof line, stdin) == NULL) {
        return false;
    }
    line[strcspn(line, "\n")] = '\0';
    if (strncmp(line, "send ", 5) == 0) {
        write_text(ssl, line + 5);
    } else if (strcmp(line, "rebind") == 0) {
        rebind(link);
    } else if (strcmp(line, "reconnect") == 0) {
        reconnect(ssl, link);
    }
    return strcmp(line, "close") != 0;
}

static void converse(mbedtls_ssl_context *ssl, link_t *link, bool answers) {
    while (true) {
        if (!hear(ssl, link, answers)) {
            printf("closed\n");
            return;
        }
        struct pollfd sources[] = {{.fd = link->socket, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
        poll(sources, 2, -1);
        if (sources[1].revents != 0 && !obey(ssl, link)) {
            return;
        }
    }
}

static void configure(mbedtls_ssl_config *config, char **options) {
    static mbedtls_x509_crt authority, certificate;
    static mbedtls_pk_context key;
    static mbedtls_entropy_context entropy;
    static int suites[2];
    const char *name, *identity = getenv("PSK_IDENTITY"), *psk_hex = getenv("PSK_KEY");
    const char *cid = option(options, "cid");
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&generator);
    check(mbedtls_ctr_drbg_seed(&generator, mbedtls_entropy_func, &entropy, NULL, 0), "random");
    mbedtls_ssl_conf_rng(config, mbedtls_ctr_drbg_random, &generator);
    mbedtls_ssl_conf_max_tls_version(config, MBEDTLS_SSL_VERSION_TLS1_2);
    mbedtls_ssl_conf_authmode(config, MBEDTLS_SSL_VERIFY_NONE);
    if ((name = option(options, "suite")) != NULL) {
        suites[0] = mbedtls_ssl_get_ciphersuite_id(name);
        mbedtls_ssl_conf_ciphersuites(config, suites);
    }
    if (identity != NULL && psk_hex != NULL) {
        unsigned char psk[64];
        size_t length = from_hex(psk_hex, psk, sizeof psk);
        check(mbedtls_ssl_conf_psk(config, psk, length, (const unsigned char *) identity, strlen(identity)), "PSK");
    }
    if ((name = option(options, "fragment")) != NULL) {
        check(mbedtls_ssl_conf_max_frag_len(config, (unsigned char) atoi(name)), "fragment length");
    }
    mbedtls_x509_crt_init(&authority);
    mbedtls_x509_crt_init(&certificate);
    mbedtls_pk_init(&key);
    if ((name = option(options, "authority")) != NULL) {
        check(mbedtls_x509_crt_parse_file(&authority, name), name);
        mbedtls_ssl_conf_ca_chain(config, &authority, NULL);
        mbedtls_ssl_conf_authmode(config, MBEDTLS_SSL_VERIFY_REQUIRED);
    }
    if ((name = option(options, "certificate")) != NULL) {
        check(mbedtls_x509_crt_parse_file(&certificate, name), name);
        name = option(options, "key");
        check(mbedtls_pk_parse_keyfile(&key, name, NULL, mbedtls_ctr_drbg_random, &generator), name);
        check(mbedtls_ssl_conf_own_cert(config, &certificate, &key), "certificate");
    }
    if (cid != NULL) {
        check(mbedtls_ssl_conf_cid(config, strlen(cid) / 2, MBEDTLS_SSL_UNEXPECTED_CID_IGNORE), "connection ID");
    }
}

int main(int count, char **arguments) {
    if (count < 3) {
        return 2;
    }
    bool server = strcmp(arguments[1], "server") == 0;
    int port = atoi(arguments[2]);
    char **options = arguments + 3;
    mbedtls_ssl_config config;
    mbedtls_ssl_context ssl;
    mbedtls_ssl_cookie_ctx cookies;
    mbedtls_timing_delay_context timer;
    setvbuf(stdout, NULL, _IOLBF, 0);
    setvbuf(stdin, NULL, _IONBF, 0); /* so that poll knows of every line */
    check(psa_crypto_init() == PSA_SUCCESS ? 0 : MBEDTLS_ERR_ERROR_GENERIC_ERROR, "PSA");
    mbedtls_ssl_config_init(&config);
    mbedtls_ssl_init(&ssl);
    check(mbedtls_ssl_config_defaults(&config, server ? MBEDTLS_SSL_IS_SERVER : MBEDTLS_SSL_IS_CLIENT,
                                      MBEDTLS_SSL_TRANSPORT_DATAGRAM, MBEDTLS_SSL_PRESET_DEFAULT), "defaults");
    configure(&config, options);
    link_t link = {.socket = bound_socket(server ? port : 0), .peer = local(port), .cid = option(options, "cid")};
    if (server) {
        mbedtls_ssl_cookie_init(&cookies);
        check(mbedtls_ssl_cookie_setup(&cookies, mbedtls_ctr_drbg_random, &generator), "cookies");
        mbedtls_ssl_conf_dtls_cookies(&config, mbedtls_ssl_cookie_write, mbedtls_ssl_cookie_check, &cookies);
        unsigned char first;
        socklen_t length = sizeof link.peer;
        recvfrom(link.socket, &first, 1, MSG_PEEK, (struct sockaddr *) &link.peer, &length);
    }
    check(mbedtls_ssl_setup(&ssl, &config), "setup");
    if (!server) {
        check(mbedtls_ssl_set_hostname(&ssl, "localhost"), "host name");
    }
    mbedtls_ssl_set_bio(&ssl, &link, send_datagram, receive_datagram, NULL);
    mbedtls_ssl_set_timer_cb(&ssl, &timer, mbedtls_timing_set_delay, mbedtls_timing_get_delay);
    handshake(&ssl, &link, server);
    converse(&ssl, &link, server);
    mbedtls_ssl_close_notify(&ssl);
    return 0;
}
