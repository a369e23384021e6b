import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.Arrays;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.bouncycastle.tls.AlertDescription;
import org.bouncycastle.tls.BasicTlsPSKIdentity;
import org.bouncycastle.tls.DTLSClientProtocol;
import org.bouncycastle.tls.DTLSRecordFlags;
import org.bouncycastle.tls.DTLSRequest;
import org.bouncycastle.tls.DTLSServerProtocol;
import org.bouncycastle.tls.DTLSTransport;
import org.bouncycastle.tls.DTLSVerifier;
import org.bouncycastle.tls.DatagramTransport;
import org.bouncycastle.tls.PSKTlsClient;
import org.bouncycastle.tls.PSKTlsServer;
import org.bouncycastle.tls.ProtocolVersion;
import org.bouncycastle.tls.SecurityParameters;
import org.bouncycastle.tls.TlsFatalAlertReceived;
import org.bouncycastle.tls.TlsPSKIdentityManager;
import org.bouncycastle.tls.crypto.TlsCrypto;
import org.bouncycastle.tls.crypto.impl.bc.BcTlsCrypto;
import org.bouncycastle.util.encoders.Hex;

/**
 * A Bouncy Castle 1.80 DTLS 1.2 peer with connection IDs (RFC 9146): (client|server) port suite-number [cid].
 *
 * <p>The connection ID is in hex, perhaps empty; without one it knows no connection IDs. PSK_IDENTITY and PSK_KEY (in
 * hex) are in the environment. It is told what to do, and says what happens, as mbedtls_cid_peer.c does.
 */
public final class BouncyCastleCidPeer {
    private static final int LARGEST = 16384;
    private static final int LARGEST_SENT = 1372;
    private static final int TICK_MILLISECONDS = 20;

    /** The socket, never connected: both its own and the other side's address may change. */
    private static final class Link implements DatagramTransport {
        private DatagramSocket socket;
        private InetSocketAddress peer;
        private InetSocketAddress sender;

        Link(int port, InetSocketAddress peer) throws IOException {
            this.socket = new DatagramSocket(port, InetAddress.getLoopbackAddress());
            this.peer = peer;
        }

        void rebind() throws IOException {
            DatagramSocket old = socket;
            socket = new DatagramSocket(0, InetAddress.getLoopbackAddress());
            old.close();
            say("rebound " + socket.getLocalPort());
        }

        /** Follows the sender of a record that its connection ID has led here and that is newer than all others. */
        void follow(int flags) {
            int wanted = DTLSRecordFlags.IS_NEWEST | DTLSRecordFlags.USES_CONNECTION_ID;
            if ((flags & wanted) == wanted && !sender.equals(peer)) {
                peer = sender;
                say("moved " + peer.getPort());
            }
        }

        @Override public int getReceiveLimit() {
            return LARGEST;
        }

        @Override public int getSendLimit() {
            return LARGEST_SENT;
        }

        @Override public int receive(byte[] buffer, int offset, int length, int wait) throws IOException {
            DatagramPacket packet = new DatagramPacket(buffer, offset, length);
            socket.setSoTimeout(wait);
            try {
                socket.receive(packet);
            } catch (SocketTimeoutException nothing) {
                return -1;
            }
            sender = (InetSocketAddress) packet.getSocketAddress();
            return packet.getLength();
        }

        @Override public void send(byte[] buffer, int offset, int length) throws IOException {
            socket.send(new DatagramPacket(buffer, offset, length, peer));
        }

        @Override public void close() {
            socket.close();
        }
    }

    public static void main(String[] arguments) throws Exception {
        boolean server = arguments[0].equals("server");
        int port = Integer.parseInt(arguments[1]);
        int[] suites = {Integer.decode(arguments[2])};
        byte[] cid = arguments.length > 3 ? Hex.decode(arguments[3]) : null;
        byte[] identity = System.getenv("PSK_IDENTITY").getBytes(StandardCharsets.UTF_8);
        byte[] key = Hex.decode(System.getenv("PSK_KEY"));
        try {
            Link link = server ? new Link(port, null)
                : new Link(0, new InetSocketAddress(InetAddress.getLoopbackAddress(), port));
            DTLSTransport transport = server ? accept(link, suites, identity, key, cid)
                : connect(link, suites, identity, key, cid);
            say("connected");
            converse(transport, link, server);
        } catch (TlsFatalAlertReceived alert) {
            say("failed: alert " + AlertDescription.getName(alert.getAlertDescription()));
            System.exit(1);
        } catch (IOException error) {
            say("failed: " + error);
            System.exit(1);
        }
    }

    private static DTLSTransport connect(Link link, int[] suites, byte[] identity, byte[] key, byte[] cid)
        throws IOException {
        TlsCrypto crypto = new BcTlsCrypto(new SecureRandom());
        return new DTLSClientProtocol().connect(new PSKTlsClient(crypto, new BasicTlsPSKIdentity(identity, key)) {
            @Override protected ProtocolVersion[] getSupportedVersions() {
                return ProtocolVersion.DTLSv12.only();
            }
            @Override protected int[] getSupportedCipherSuites() {
                return suites;
            }
            @Override protected byte[] getNewConnectionID() {
                return cid;
            }
            @Override public void notifyHandshakeComplete() throws IOException {
                super.notifyHandshakeComplete();
                sayWhatIsNegotiated(context.getSecurityParametersConnection());
            }
        }, link);
    }

    private static DTLSTransport accept(Link link, int[] suites, byte[] identity, byte[] key, byte[] cid)
        throws IOException {
        TlsCrypto crypto = new BcTlsCrypto(new SecureRandom());
        PSKTlsServer peer = new PSKTlsServer(crypto, new TlsPSKIdentityManager() {
            @Override public byte[] getHint() {
                return null;
            }
            @Override public byte[] getPSK(byte[] asked) {
                return Arrays.equals(asked, identity) ? key : null;
            }
        }) {
            @Override protected ProtocolVersion[] getSupportedVersions() {
                return ProtocolVersion.DTLSv12.only();
            }
            @Override protected int[] getSupportedCipherSuites() {
                return suites;
            }
            @Override protected byte[] getNewConnectionID() {
                return cid;
            }
            @Override public void notifyHandshakeComplete() throws IOException {
                super.notifyHandshakeComplete();
                sayWhatIsNegotiated(context.getSecurityParametersConnection());
            }
        };
        DTLSVerifier verifier = new DTLSVerifier(crypto);
        DTLSRequest request = null;
        byte[] buffer = new byte[LARGEST];
        while (request == null) {
            int length = link.receive(buffer, 0, buffer.length, 0);
            link.peer = link.sender;
            byte[] client = link.peer.toString().getBytes(StandardCharsets.UTF_8);
            request = verifier.verifyRequest(client, buffer, 0, length, link);
        }
        return new DTLSServerProtocol().accept(peer, link, request);
    }

    private static void sayWhatIsNegotiated(SecurityParameters negotiated) {
        say(String.format("suite 0x%04x", negotiated.getCipherSuite()));
        // Bouncy Castle names them after the side that writes them, not the side that has chosen them.
        say("own-cid " + shown(negotiated.getConnectionIDPeer()));
        say("peer-cid " + shown(negotiated.getConnectionIDLocal()));
    }

    private static String shown(byte[] cid) {
        return cid == null || cid.length == 0 ? "none" : Hex.toHexString(cid);
    }

    private static void converse(DTLSTransport transport, Link link, boolean answers) throws IOException {
        ConcurrentLinkedQueue<String> typed = new ConcurrentLinkedQueue<>();
        Thread listener = new Thread(() -> listen(typed));
        listener.setDaemon(true);
        listener.start();
        byte[] buffer = new byte[LARGEST];
        while (true) {
            String line = typed.poll();
            if (line == null) {
                // nothing typed
            } else if (line.startsWith("send ")) {
                write(transport, line.substring(5));
            } else if (line.equals("rebind")) {
                link.rebind();
            } else if (line.equals("close")) {
                transport.close();
                return;
            }
            int length;
            try {
                length = transport.receive(buffer, 0, buffer.length, TICK_MILLISECONDS, link::follow);
            } catch (TlsFatalAlertReceived alert) {
                throw alert;
            } catch (IOException closed) {
                // After the peer's close_notify the transport answers with its own and refuses further calls.
                say("closed");
                return;
            }
            if (length >= 0) {
                String text = new String(buffer, 0, length, StandardCharsets.UTF_8);
                say("received " + text);
                if (answers) {
                    write(transport, "heard " + text);
                }
            }
        }
    }

    private static void write(DTLSTransport transport, String text) throws IOException {
        byte[] data = text.getBytes(StandardCharsets.UTF_8);
        transport.send(data, 0, data.length);
    }

    private static void listen(ConcurrentLinkedQueue<String> typed) {
        try (BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8))) {
            String line;
            while ((line = input.readLine()) != null) {
                typed.add(line);
            }
            typed.add("close");
        } catch (IOException gone) {
            typed.add("close");
        }
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
