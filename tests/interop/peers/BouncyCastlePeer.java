import java.io.IOException;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.Arrays;
import org.bouncycastle.tls.AlertDescription;
import org.bouncycastle.tls.BasicTlsPSKIdentity;
import org.bouncycastle.tls.DTLSClientProtocol;
import org.bouncycastle.tls.DTLSRequest;
import org.bouncycastle.tls.DTLSServerProtocol;
import org.bouncycastle.tls.DTLSTransport;
import org.bouncycastle.tls.DTLSVerifier;
import org.bouncycastle.tls.DatagramSender;
import org.bouncycastle.tls.PSKTlsClient;
import org.bouncycastle.tls.PSKTlsServer;
import org.bouncycastle.tls.ProtocolVersion;
import org.bouncycastle.tls.TlsFatalAlertReceived;
import org.bouncycastle.tls.TlsPSKIdentityManager;
import org.bouncycastle.tls.UDPTransport;
import org.bouncycastle.tls.crypto.TlsCrypto;
import org.bouncycastle.tls.crypto.impl.bc.BcTlsCrypto;
import org.bouncycastle.util.encoders.Hex;

/** A Bouncy Castle DTLS 1.2 peer: (client|server) port suite-number identity key-in-hex link-mtu. */
public final class BouncyCastlePeer {
    private static final int RECEIVE_BUFFER = 20000;
    private static final int WAIT_MILLISECONDS = 30000;

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[1]);
        int[] suites = {Integer.decode(arguments[2])};
        byte[] identity = arguments[3].getBytes(StandardCharsets.UTF_8);
        byte[] key = Hex.decode(arguments[4]);
        int mtu = Integer.parseInt(arguments[5]);
        try {
            if (arguments[0].equals("client")) {
                client(port, suites, identity, key, mtu);
            } else {
                server(port, suites, identity, key, mtu);
            }
        } catch (TlsFatalAlertReceived alert) {
            say("failed: alert " + AlertDescription.getName(alert.getAlertDescription()));
            System.exit(1);
        } catch (IOException error) {
            say("failed: " + error);
            System.exit(1);
        }
    }

    private static void client(int port, int[] suites, byte[] identity, byte[] key, int mtu) throws Exception {
        TlsCrypto crypto = new BcTlsCrypto(new SecureRandom());
        PSKTlsClient peer = new PSKTlsClient(crypto, new BasicTlsPSKIdentity(identity, key)) {
            @Override protected ProtocolVersion[] getSupportedVersions() {
                return ProtocolVersion.DTLSv12.only();
            }
            @Override protected int[] getSupportedCipherSuites() {
                return suites;
            }
        };
        DatagramSocket socket = new DatagramSocket();
        socket.connect(InetAddress.getLoopbackAddress(), port);
        DTLSTransport transport = new DTLSClientProtocol().connect(peer, new UDPTransport(socket, mtu));
        say("connected");
        byte[] hello = "hello".getBytes(StandardCharsets.UTF_8);
        transport.send(hello, 0, hello.length);
        byte[] buffer = new byte[RECEIVE_BUFFER];
        int length = transport.receive(buffer, 0, buffer.length, WAIT_MILLISECONDS);
        say(length < 0 ? "failed: no answer" : "received " + new String(buffer, 0, length, StandardCharsets.UTF_8));
        transport.close();
    }

    private static void server(int port, int[] suites, byte[] identity, byte[] key, int mtu) throws Exception {
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
        };
        DatagramSocket socket = new DatagramSocket(port, InetAddress.getLoopbackAddress());
        DTLSVerifier verifier = new DTLSVerifier(crypto);
        DTLSRequest request = null;
        byte[] buffer = new byte[RECEIVE_BUFFER];
        while (request == null) {
            DatagramPacket packet = new DatagramPacket(buffer, buffer.length);
            socket.receive(packet);
            request = verifier.verifyRequest(packet.getSocketAddress().toString().getBytes(StandardCharsets.UTF_8),
                buffer, 0, packet.getLength(), new DatagramSender() {
                    @Override public int getSendLimit() {
                        return mtu - 28;
                    }
                    @Override public void send(byte[] data, int offset, int length) throws IOException {
                        socket.send(new DatagramPacket(data, offset, length, packet.getSocketAddress()));
                    }
                });
            if (request != null) {
                socket.connect(packet.getSocketAddress());
            }
        }
        DTLSTransport transport = new DTLSServerProtocol().accept(peer, new UDPTransport(socket, mtu), request);
        say("connected");
        while (true) {
            int length;
            try {
                length = transport.receive(buffer, 0, buffer.length, WAIT_MILLISECONDS);
            } catch (IOException closed) {
                // After the peer's close_notify the transport answers with its own and refuses further calls.
                say("closed");
                return;
            }
            if (length >= 0) {
                String text = new String(buffer, 0, length, StandardCharsets.UTF_8);
                say("received " + text);
                if (text.equals("bye")) {
                    transport.close();
                    return;
                }
                byte[] answer = ("heard " + text.substring(0, 5)).getBytes(StandardCharsets.UTF_8);
                transport.send(answer, 0, answer.length);
            }
        }
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
