import com.caucho.hessian.io.Hessian2Input;
import com.caucho.hessian.io.Hessian2Output;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.math.BigInteger;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A Java service and a Java client of binary packets, as they are without a mesh: bodies are what
 * libhessian-java writes and reads, the header has 19 bytes with extension bit 0x02.
 *
 * <p>usage: MoaPeer service HOST PORT | MoaPeer client (HOST PORT URI METHOD)...
 *
 * <p>Methods: `echo` returns its arguments, `digest` the SHA-256 of the request's body. The client
 * prints "sent D", "received D" and "result R" for each call, the service "replied D" (D is the
 * digest of a body), so that a test can compare the bytes at both ends.
 */
public final class MoaPeer {
  private static final int REQ = 1;
  private static final int RESP = 2;
  private static final long HESSIAN = 2;

  private static byte[] write(Object value) throws IOException {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    Hessian2Output out = new Hessian2Output(bytes);
    out.writeObject(value);
    out.flush();
    return bytes.toByteArray();
  }

  private static Object read(byte[] body) throws IOException {
    return new Hessian2Input(new ByteArrayInputStream(body)).readObject();
  }

  private static String digest(byte[] body) throws Exception {
    byte[] hash = MessageDigest.getInstance("SHA-256").digest(body);
    return String.format("%064x", new BigInteger(1, hash));
  }

  private static void send(DataOutputStream out, int opaque, int cmd, byte[] body)
      throws IOException {
    ByteArrayOutputStream packet = new ByteArrayOutputStream();
    DataOutputStream head = new DataOutputStream(packet);
    head.writeInt(opaque);
    head.writeByte(cmd);
    head.writeShort(1);
    head.writeLong(HESSIAN);
    head.writeInt(body.length);
    head.write(body);
    out.write(packet.toByteArray());
    out.flush();
  }

  /** The body of the next packet; its number is in `opaque[0]`. */
  private static byte[] receive(DataInputStream in, int[] opaque, int expected)
      throws IOException {
    opaque[0] = in.readInt();
    int cmd = in.readByte();
    in.readShort();
    long extension = in.readLong();
    byte[] body = new byte[in.readInt()];
    in.readFully(body);
    if (cmd != expected || extension != HESSIAN)
      throw new IOException("cmd " + cmd + ", extension " + extension);
    return body;
  }

  private static Map<String, Object> answer(byte[] body) throws Exception {
    Map<?, ?> request = (Map<?, ?>) read(body);
    Map<?, ?> params = (Map<?, ?>) request.get("params");
    Object result = "digest".equals(params.get("m")) ? digest(body) : params.get("args");
    Map<String, Object> reply = new LinkedHashMap<>();
    reply.put("ec", 200);
    reply.put("em", "");
    reply.put("result", result);
    return reply;
  }

  private static void serve(Socket socket) {
    try (socket) {
      DataInputStream in = new DataInputStream(socket.getInputStream());
      DataOutputStream out = new DataOutputStream(socket.getOutputStream());
      int[] opaque = new int[1];
      while (true) {
        byte[] reply = write(answer(receive(in, opaque, REQ)));
        say("replied " + digest(reply));
        send(out, opaque[0], RESP, reply);
      }
    } catch (EOFException end) {
      return;
    } catch (Exception error) {
      say("error " + error);
    }
  }

  private static void service(String host, int port) throws IOException {
    try (ServerSocket listener = new ServerSocket(port, 50, InetAddress.getByName(host))) {
      say("ready");
      while (true) {
        Socket socket = listener.accept();
        new Thread(() -> serve(socket)).start();
      }
    }
  }

  private static List<Object> arguments() {
    Map<String, Object> map = new HashMap<>();
    map.put("größe", new ArrayList<>(Arrays.asList(1, 2)));
    return new ArrayList<>(
        Arrays.asList("中文 😀", 1, -(1L << 40), 2.5, true, null, map));
  }

  private static void call(String host, int port, String uri, String method) throws Exception {
    Map<String, Object> params = new HashMap<>();
    params.put("m", method);
    params.put("args", arguments());
    Map<String, Object> request = new HashMap<>();
    request.put("action", uri);
    request.put("params", params);
    request.put("props", Collections.singletonMap("hashid", "7"));
    byte[] body = write(request);
    say("sent " + digest(body));
    try (Socket socket = new Socket(host, port)) {
      socket.setSoTimeout(10000);
      send(new DataOutputStream(socket.getOutputStream()), 77, REQ, body);
      int[] opaque = new int[1];
      byte[] reply = receive(new DataInputStream(socket.getInputStream()), opaque, RESP);
      say("received " + digest(reply));
      say("result " + opaque[0] + " " + read(reply));
    }
  }

  private static synchronized void say(String line) {
    System.out.println(line);
    System.out.flush();
  }

  public static void main(String[] args) throws Exception {
    if (args[0].equals("service")) {
      service(args[1], Integer.parseInt(args[2]));
      return;
    }
    for (int i = 1; i < args.length; i += 4)
      call(args[i], Integer.parseInt(args[i + 1]), args[i + 2], args[i + 3]);
  }

  private MoaPeer() {}
}
