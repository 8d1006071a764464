import com.caucho.hessian.io.Hessian2Input;
import com.caucho.hessian.io.Hessian2Output;
import com.caucho.hessian.io.SerializerFactory;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.Serializable;
import java.lang.reflect.Field;
import java.lang.reflect.Modifier;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.Date;
import java.util.HashMap;
import java.util.HashSet;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.LinkedList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;

/**
 * Caucho's own Hessian 2 as the other side of a test, driven over standard input and output.
 *
 * <p>A request is a command byte and a frame; a frame is a 32-bit length and bytes. Commands:
 * 'R' reads the frame as a Hessian value and answers its outline and the bytes that Java writes
 * for it; 'W' makes a random value from the seed in the frame and answers its bytes and its
 * outline; 'N' answers the same for the named vector. An error is answered as the outline "!..."
 * and an empty frame. The outline's form is that of tests/support/hessian_outline.py.
 */
public final class HessianPeer {
  static final SerializerFactory FACTORY = new SerializerFactory();

  public enum Color { RED, GREEN, BLUE }

  public static class Props extends HashMap<Object, Object> {
    private static final long serialVersionUID = 1;
  }

  public static class Named implements Serializable {
    private static final long serialVersionUID = 1;
    String name;
  }

  public static final class Person extends Named {
    private static final long serialVersionUID = 1;
    int age;
    long id;
    double score;
    boolean active;
    Date born;
    byte[] photo;
    List<Object> friends;
    Color color;
  }

  public static final class Box implements Serializable {
    private static final long serialVersionUID = 1;
    Object a;
    Object b;
  }

  public static final class Request implements Serializable {
    private static final long serialVersionUID = 1;
    Object action;
    Object params;
    Object props;
  }

  public static final class Params implements Serializable {
    private static final long serialVersionUID = 1;
    Object m;
    Object args;
  }

  public static class Many implements Serializable {
    private static final long serialVersionUID = 1;
    int n;
  }

  public static final class M0 extends Many {}
  public static final class M1 extends Many {}
  public static final class M2 extends Many {}
  public static final class M3 extends Many {}
  public static final class M4 extends Many {}
  public static final class M5 extends Many {}
  public static final class M6 extends Many {}
  public static final class M7 extends Many {}
  public static final class M8 extends Many {}
  public static final class M9 extends Many {}
  public static final class M10 extends Many {}
  public static final class M11 extends Many {}
  public static final class M12 extends Many {}
  public static final class M13 extends Many {}
  public static final class M14 extends Many {}
  public static final class M15 extends Many {}
  public static final class M16 extends Many {}
  public static final class M17 extends Many {}

  static Object[] many() {
    return new Object[] {
      new M0(), new M1(), new M2(), new M3(), new M4(), new M5(), new M6(), new M7(), new M8(),
      new M9(), new M10(), new M11(), new M12(), new M13(), new M14(), new M15(), new M16(),
      new M17(), new M17()
    };
  }

  // ---- the outline

  static final class Outline {
    private final IdentityHashMap<Object, Integer> seen = new IdentityHashMap<>();

    String of(Object value) throws IllegalAccessException {
      if (value == null) return "N";
      if (value instanceof Boolean) return (Boolean) value ? "T" : "F";
      if (value instanceof Integer || value instanceof Short || value instanceof Byte)
        return "i" + value;
      if (value instanceof Long) return "l" + value;
      if (value instanceof Double || value instanceof Float)
        return String.format("d%016x", Double.doubleToLongBits(((Number) value).doubleValue()));
      if (value.getClass() == Date.class) return "D" + ((Date) value).getTime();
      if (value instanceof byte[]) return "b" + hex((byte[]) value);
      if (value instanceof String)
        return "s" + hex(units((String) value));
      Integer number = seen.get(value);
      if (number != null) return "#" + number;
      seen.put(value, seen.size());
      if (value instanceof Map) return ofMap((Map<?, ?>) value);
      if (value instanceof Collection)
        return ofItems(
            value.getClass() == ArrayList.class ? "" : value.getClass().getName(),
            ((Collection<?>) value).toArray());
      if (value instanceof Object[])
        return ofItems(value instanceof String[] ? "[string" : "[object", (Object[]) value);
      if (value instanceof int[]) return ofInts((int[]) value);
      return ofObject(value);
    }

    private String ofInts(int[] value) throws IllegalAccessException {
      Object[] items = new Object[value.length];
      for (int i = 0; i < items.length; i++) items[i] = value[i];
      return ofItems("[int", items);
    }

    private String ofItems(String type, Object[] items) throws IllegalAccessException {
      StringBuilder out = new StringBuilder("(" + type + "|");
      for (Object item : items) out.append(of(item)).append(',');
      return out.append(')').toString();
    }

    private String ofMap(Map<?, ?> map) throws IllegalAccessException {
      TreeMap<String, Object> sorted = new TreeMap<>();
      for (Map.Entry<?, ?> entry : map.entrySet()) sorted.put(of(entry.getKey()), entry.getValue());
      return entries("{" + (map.getClass() == HashMap.class ? "" : map.getClass().getName()), sorted, "}");
    }

    private String ofObject(Object value) throws IllegalAccessException {
      TreeMap<String, Object> sorted = new TreeMap<>();
      if (value instanceof Enum) {
        sorted.put("name", ((Enum<?>) value).name());
      } else {
        for (Class<?> c = value.getClass(); c != Object.class; c = c.getSuperclass())
          for (Field field : c.getDeclaredFields())
            if (!Modifier.isStatic(field.getModifiers())) sorted.put(field.getName(), field.get(value));
      }
      return entries("<" + value.getClass().getName(), sorted, ">");
    }

    private String entries(String head, TreeMap<String, Object> sorted, String end)
        throws IllegalAccessException {
      StringBuilder out = new StringBuilder(head + "|");
      for (Map.Entry<String, Object> entry : sorted.entrySet())
        out.append(entry.getKey()).append('=').append(of(entry.getValue())).append(',');
      return out.append(end).toString();
    }

    private static byte[] units(String text) {
      byte[] units = new byte[2 * text.length()];
      for (int i = 0; i < text.length(); i++) {
        units[2 * i] = (byte) (text.charAt(i) >> 8);
        units[2 * i + 1] = (byte) text.charAt(i);
      }
      return units;
    }

    private static String hex(byte[] bytes) {
      StringBuilder out = new StringBuilder(2 * bytes.length);
      for (byte b : bytes) out.append(Character.forDigit(b >> 4 & 15, 16)).append(Character.forDigit(b & 15, 16));
      return out.toString();
    }
  }

  // ---- random values

  static final class Maker {
    private final Random random;
    private final List<Object> containers = new ArrayList<>();
    private int left = 60;

    Maker(long seed) {
      random = new Random(seed);
    }

    Object make(int depth) {
      left--;
      int kind = random.nextInt(depth > 5 || left < 0 ? 8 : 20);
      switch (kind) {
        case 0: return random.nextBoolean() ? null : (Object) random.nextBoolean();
        case 1: return random.nextInt() >> random.nextInt(32);
        case 2: return random.nextLong() >> random.nextInt(64);
        case 3: return number();
        case 4: return text();
        case 5: return new Date(date());
        case 6: return bytes();
        case 7: return containers.isEmpty() ? null : containers.get(random.nextInt(containers.size()));
        case 8: return fill(new ArrayList<>(), depth);
        case 9: return fill(new LinkedList<>(), depth);
        case 10: return fillArray(depth);
        case 11: return random.ints(random.nextInt(12)).toArray();
        case 12: return new String[] {text(), null, text()};
        case 13: return put(new HashMap<>(), depth);
        case 14: return put(new LinkedHashMap<>(), depth);
        case 15: return put(new Props(), depth);
        case 16: return person(depth);
        case 17: return box(depth);
        case 18: return Color.values()[random.nextInt(3)];
        default: return many()[random.nextInt(18)];
      }
    }

    private Object number() {
      switch (random.nextInt(5)) {
        case 0: return (double) random.nextInt(300) - 150;
        case 1: return (double) random.nextInt(80000) - 40000;
        case 2: return 0.001 * random.nextInt();
        case 3: return Double.longBitsToDouble(random.nextLong());
        default: return random.nextGaussian();
      }
    }

    private long date() {
      switch (random.nextInt(3)) {
        case 0: return 60000L * random.nextInt();
        case 1: return random.nextLong();
        default: return 1700000000000L + random.nextInt();
      }
    }

    private String text() {
      String[] alphabets = {"abc\0\u007f", "a\u00e9\u07ff", "\u4e2d\uffff\u0800", "a\ud83d\ude00", "\ud800\udc00x"};
      String alphabet = alphabets[random.nextInt(alphabets.length)];
      int size = random.nextInt(10) > 0 ? random.nextInt(40) : random.nextInt(70000);
      StringBuilder out = new StringBuilder(size);
      for (int i = 0; i < size; i++) out.append(alphabet.charAt(random.nextInt(alphabet.length())));
      return out.toString();
    }

    private byte[] bytes() {
      byte[] bytes = new byte[random.nextInt(10) > 0 ? random.nextInt(40) : random.nextInt(70000)];
      random.nextBytes(bytes);
      return bytes;
    }

    private Object fill(Collection<Object> list, int depth) {
      containers.add(list);
      for (int n = random.nextInt(10); n > 0; n--) list.add(make(depth + 1));
      return list;
    }

    private Object fillArray(int depth) {
      Object[] array = new Object[random.nextInt(10)];
      containers.add(array);
      for (int i = 0; i < array.length; i++) array[i] = make(depth + 1);
      return array;
    }

    private Object put(Map<Object, Object> map, int depth) {
      containers.add(map);
      for (int n = random.nextInt(6); n > 0; n--)
        map.put(random.nextBoolean() ? text() : (Object) random.nextInt(99), make(depth + 1));
      return map;
    }

    private Object person(int depth) {
      Person person = new Person();
      containers.add(person);
      person.name = text();
      person.age = random.nextInt();
      person.id = random.nextLong();
      person.score = random.nextInt(1000) / 8.0;
      person.active = random.nextBoolean();
      person.born = new Date(date());
      person.photo = bytes();
      person.friends = new ArrayList<>();
      person.friends.add(make(depth + 1));
      person.color = Color.values()[random.nextInt(3)];
      return person;
    }

    private Object box(int depth) {
      Box box = new Box();
      containers.add(box);
      box.a = make(depth + 1);
      box.b = make(depth + 1);
      return box;
    }
  }

  // ---- named vectors: what random values seldom or never show

  static Map<String, Object> map(Map<String, Object> into, Object... pairs) {
    for (int i = 0; i < pairs.length; i += 2) into.put((String) pairs[i], pairs[i + 1]);
    return into;
  }

  static String times(String text, int count) {
    return String.join("", Collections.nCopies(count, text));
  }

  static Object named(String name) {
    switch (name) {
      case "texts": {
        List<Object> list = new ArrayList<>();
        for (int size : new int[] {0, 1, 31, 32, 255, 256, 1023, 1024, 32767, 32768, 32769, 65536})
          for (String unit : new String[] {"a", "\u00e9", "\u4e2d"}) list.add(times(unit, size));
        list.add("x" + times("\ud83d\ude00", 40000));
        list.add(times("\ud83d\ude00", 40000));
        list.add("\ud83d");
        list.add("\ude00\ud83d");
        list.add("\0\u007f\u0080\u07ff\u0800\ufffe\uffff");
        return list;
      }
      case "binaries": {
        List<Object> list = new ArrayList<>();
        for (int size : new int[] {0, 1, 15, 16, 255, 256, 1023, 1024, 8189, 8192, 32768, 65535, 65536, 100000}) {
          byte[] bytes = new byte[size];
          new Random(size).nextBytes(bytes);
          list.add(bytes);
        }
        return list;
      }
      case "integers": {
        List<Object> list = new ArrayList<>();
        for (int bits = 0; bits < 64; bits++)
          for (long delta = -17; delta <= 17; delta++)
            for (long value : new long[] {(1L << bits) + delta, -(1L << bits) + delta}) {
              list.add(value);
              list.add((int) value);
            }
        return list;
      }
      case "doubles": {
        List<Object> list = new ArrayList<>();
        for (double value : new double[] {
            0, 1, -1, 127, 128, -128, -129, 32767, 32768, -32768, -32769, 0.001, -0.001, 12.25, 3.14,
            65.536, 2147483.647, -2147483.648, 2147483.648, 1e300, Double.MIN_VALUE, Double.MAX_VALUE,
            Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY, 0.1, 1e-7, 123456.789})
          list.add(value);
        return list;
      }
      case "dates": {
        List<Object> list = new ArrayList<>();
        for (long value : new long[] {
            0, 1, -1, 60000, -60000, 60001, 894621091000L, 894621060000L, 60000L * Integer.MAX_VALUE,
            60000L * Integer.MIN_VALUE, 60000L * (1L << 31), Long.MAX_VALUE, Long.MIN_VALUE})
          list.add(new Date(value));
        return list;
      }
      case "many classes": return many();
      case "cycles": {
        Box box = new Box();
        List<Object> list = new ArrayList<>();
        Map<Object, Object> map = new HashMap<>();
        list.add(list);
        list.add(box);
        list.add(map);
        map.put("list", list);
        map.put("map", map);
        box.a = box;
        box.b = map;
        return list;
      }
      case "numbers of Java": return new Object[] {(byte) 5, (short) -300, 1.5f};
      case "empty": return new Object[] {new int[0], new ArrayList<>(), new HashMap<>(), new HashSet<>(), new String[0]};
      default: return request(name);
    }
  }

  static Object request(String name) {
    List<Object> args = new ArrayList<>();
    args.add(new Person());
    args.add(map(new HashMap<>(), "m", "wrong", "action", "/wrong"));
    args.add(times("\ud83d\ude00", 20000));
    Map<String, Object> params = map(new HashMap<>(), "m", "getName", "args", args);
    Map<String, Object> props = map(new HashMap<>(), "hashid", "7", "n", 1, "list", args);
    String action = "/service/user#blue";
    switch (name) {
      case "request HashMap":
        return map(new HashMap<>(), "action", action, "params", params, "props", props);
      case "request LinkedHashMap":
        return map(new LinkedHashMap<>(), "props", new LinkedHashMap<>(props),
            "params", new LinkedHashMap<>(params), "action", action);
      case "request Props": {
        Props own = new Props();
        own.putAll(params);
        Props top = new Props();
        top.put(args, "a list as key");
        top.put(own, own);
        top.put(null, 5);
        top.put("action", action);
        top.put("params", own);
        top.put("props", new TreeMap<>(Collections.singletonMap("hashid", "7")));
        return top;
      }
      case "request object": {
        Request top = new Request();
        Params own = new Params();
        own.m = "getName";
        own.args = args;
        top.action = action;
        top.params = own;
        top.props = props;
        return top;
      }
      case "request reference": {
        Map<String, Object> top = new LinkedHashMap<>();
        args.add(params);
        args.add(props);
        top.put("earlier", args);
        return map(top, "action", action, "params", params, "props", props);
      }
      default: throw new IllegalArgumentException("no vector is named " + name);
    }
  }

  // ---- the wire

  static byte[] write(Object value) throws IOException {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    Hessian2Output out = new Hessian2Output(bytes);
    out.setSerializerFactory(FACTORY);
    out.writeObject(value);
    out.flush();
    return bytes.toByteArray();
  }

  static byte[] openLists() throws IOException {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    Hessian2Output out = new Hessian2Output(bytes);
    out.writeListBegin(-1, null);
    for (int i = 0; i < 2; i++) {
      out.writeListBegin(-1, "java.util.LinkedList");
      out.writeInt(i);
      out.writeListEnd();
    }
    out.writeListBegin(9, "java.util.LinkedList");
    for (int i = 0; i < 9; i++) out.writeInt(i);
    out.writeListEnd();
    out.flush();
    return bytes.toByteArray();
  }

  static Object read(byte[] body) throws IOException {
    ByteArrayInputStream bytes = new ByteArrayInputStream(body);
    Hessian2Input in = new Hessian2Input(bytes);
    in.setSerializerFactory(FACTORY);
    return in.readObject();
  }

  static void answer(DataOutputStream out, byte[] bytes) throws IOException {
    out.writeInt(bytes.length);
    out.write(bytes);
  }

  static void serve(int command, byte[] frame, DataOutputStream out) throws IOException {
    byte[] body;
    String outline;
    try {
      if (command == 'R') {
        Object value = read(frame);
        outline = new Outline().of(value);
        body = write(value);
      } else if (command == 'W') {
        Object value = new Maker(new DataInputStream(new ByteArrayInputStream(frame)).readLong()).make(0);
        outline = new Outline().of(value);
        body = write(value);
      } else {
        String name = new String(frame, StandardCharsets.UTF_8);
        body = name.equals("open lists") ? openLists() : write(named(name));
        outline = new Outline().of(name.equals("open lists") ? read(body) : named(name));
      }
    } catch (IOException | IllegalAccessException | RuntimeException error) {
      outline = "!" + error;
      body = new byte[0];
    }
    answer(out, body);
    answer(out, outline.getBytes(StandardCharsets.US_ASCII));
    out.flush();
  }

  public static void main(String[] args) throws IOException {
    FACTORY.setAllowNonSerializable(true);
    DataInputStream in = new DataInputStream(System.in);
    DataOutputStream out = new DataOutputStream(System.out);
    while (true) {
      int command = in.read();
      if (command < 0) return;
      byte[] frame = new byte[in.readInt()];
      in.readFully(frame);
      serve(command, frame, out);
    }
  }

  private HessianPeer() {}
}
