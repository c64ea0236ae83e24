package wasi

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
	"unsafe"
)

// bind runs the two halves of a bind, of TCP or UDP.
func bind(
	start func(socket, network, kind, a, b, c, d, e, f, g, h, i, j, k uint32, result pointer),
	finish func(socket uint32, result pointer), subscribe func(socket uint32) uint32,
	socket uint32, at netip.AddrPort,
) error {
	kind, f := flat(at)
	r := call(func(result pointer) {
		start(socket, network(), kind, f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], result)
	})
	if err := r.code(1); err != nil {
		return err
	}
	return finished(func() error {
		r := call(func(result pointer) { finish(socket, result) })
		return r.code(1)
	}, new(side), func() uint32 { return subscribe(socket) })
}

// finished repeats an attempt until it does not have to wait any more.
func finished(try func() error, side *side, subscribe func() uint32) error {
	for {
		err := try()
		if err != wouldBlock {
			return err
		}
		if err := side.wait(subscribe); err != nil {
			return err
		}
	}
}

var network = sync.OnceValue(instanceNetwork)

// Listener is a net.Listener.
type Listener struct {
	socket uint32
	side   side
	life   life
}

// Listen listens for TCP.
func Listen(at netip.AddrPort) (*Listener, error) {
	r := call(func(result pointer) { createTCP(family(at.Addr()), result) })
	if err := r.code(4); err != nil {
		return nil, err
	}
	socket := r.u32(4)
	subscribe := func() uint32 { return subscribeTCP(socket) }
	err := bind(startBindTCP, finishBindTCP, subscribeTCP, socket, at)
	if err == nil {
		r := call(func(result pointer) { startListen(socket, result) })
		err = r.code(1)
	}
	if err == nil {
		err = finished(func() error {
			r := call(func(result pointer) { finishListen(socket, result) })
			return r.code(1)
		}, new(side), subscribe)
	}
	if err != nil {
		dropTCP(socket)
		return nil, err
	}
	return &Listener{socket: socket}, nil
}

// Accept waits for a connection.
func (l *Listener) Accept() (net.Conn, error) {
	if !l.life.enter() {
		return nil, net.ErrClosed
	}
	defer l.life.leave(l.drop)
	var conn *Conn
	err := finished(func() error {
		r := call(func(result pointer) { accept(l.socket, result) })
		if err := r.code(4); err != nil {
			return err
		}
		conn = &Conn{socket: r.u32(4), input: r.u32(8), output: r.u32(12)}
		return nil
	}, &l.side, func() uint32 { return subscribeTCP(l.socket) })
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// Close stops listening.
func (l *Listener) Close() error {
	l.side.close()
	l.life.close(l.drop)
	return nil
}

func (l *Listener) drop() { dropTCP(l.socket) }

// Addr is where it listens.
func (l *Listener) Addr() net.Addr { return addressOf(localAddressTCP, l.socket) }

func addressOf(ask func(socket uint32, result pointer), socket uint32) net.Addr {
	r := call(func(result pointer) { ask(socket, result) })
	if r[0] != 0 {
		return &net.TCPAddr{}
	}
	return net.TCPAddrFromAddrPort(address(r[4:]))
}

// Conn is a net.Conn: one goroutine may read while another writes.
type Conn struct {
	socket, input, output uint32
	reads, writes         side
	life                  life
}

// Dial connects by TCP.
func Dial(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	r := call(func(result pointer) { createTCP(family(to.Addr()), result) })
	if err := r.code(4); err != nil {
		return nil, err
	}
	conn := &Conn{socket: r.u32(4)}
	kind, f := flat(to)
	r = call(func(result pointer) {
		startConnect(conn.socket, network(), kind,
			f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], result)
	})
	err := r.code(1)
	if err == nil {
		deadline, _ := ctx.Deadline()
		conn.writes.until(deadline)
		err = finished(func() error {
			r := call(func(result pointer) { finishConnect(conn.socket, result) })
			conn.input, conn.output = r.u32(4), r.u32(8)
			return r.code(4)
		}, &conn.writes, func() uint32 { return subscribeTCP(conn.socket) })
		conn.writes.until(time.Time{})
	}
	if err != nil {
		dropTCP(conn.socket)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return conn, nil
}

// Read waits for bytes.
func (c *Conn) Read(into []byte) (int, error) {
	if len(into) == 0 {
		return 0, nil
	}
	if !c.life.enter() {
		return 0, net.ErrClosed
	}
	defer c.life.leave(c.drop)
	most := uint64(min(len(into), 64<<10))
	for {
		forget()
		r := call(func(result pointer) { read(c.input, most, result) })
		if err := r.broken(4); err != nil {
			return 0, err
		}
		if count := copy(into, r.list(4)); count > 0 {
			return count, nil
		}
		if err := c.reads.wait(func() uint32 { return subscribeInput(c.input) }); err != nil {
			return 0, err
		}
	}
}

// Write hands all bytes to the host.
func (c *Conn) Write(bytes []byte) (int, error) {
	if !c.life.enter() {
		return 0, net.ErrClosed
	}
	defer c.life.leave(c.drop)
	for done := 0; ; {
		room, err := c.room()
		if err != nil || done == len(bytes) {
			return done, err
		}
		if room == 0 {
			if err := c.writable(); err != nil {
				return done, err
			}
			continue
		}
		piece := bytes[done : done+int(min(room, uint64(len(bytes)-done)))]
		r := call(func(result pointer) {
			write(c.output, unsafe.Pointer(&piece[0]), uint32(len(piece)), result)
		})
		if err := r.broken(4); err != nil {
			return done, ended(err)
		}
		done += len(piece)
	}
}

// room is how many bytes the host takes at once.
func (c *Conn) room() (uint64, error) {
	r := call(func(result pointer) { checkWrite(c.output, result) })
	if err := r.broken(8); err != nil {
		return 0, ended(err)
	}
	return r.u64(8), nil
}

func (c *Conn) writable() error {
	return c.writes.wait(func() uint32 { return subscribeOutput(c.output) })
}

// ended is the error of a write for which there is no other side any more.
func ended(err error) error {
	if err == io.EOF {
		return io.ErrClosedPipe
	}
	return err
}

// CloseWrite says that no more comes, once all has gone.
func (c *Conn) CloseWrite() error {
	if !c.life.enter() {
		return net.ErrClosed
	}
	defer c.life.leave(c.drop)
	r := call(func(result pointer) { flush(c.output, result) })
	if err := r.broken(4); err != nil {
		return ended(err)
	}
	for {
		room, err := c.room()
		if err != nil {
			return err
		}
		if room > 0 {
			break
		}
		if err := c.writable(); err != nil {
			return err
		}
	}
	r = call(func(result pointer) { shutdown(c.socket, 1, result) })
	return r.code(1)
}

// Close ends the connection, and with it reads and writes under way.
func (c *Conn) Close() error {
	c.reads.close()
	c.writes.close()
	c.life.close(c.drop)
	return nil
}

func (c *Conn) drop() {
	dropInput(c.input)
	dropOutput(c.output)
	dropTCP(c.socket)
}

// LocalAddr is this side's address.
func (c *Conn) LocalAddr() net.Addr { return addressOf(localAddressTCP, c.socket) }

// RemoteAddr is the other side's address.
func (c *Conn) RemoteAddr() net.Addr { return addressOf(remoteAddressTCP, c.socket) }

// SetDeadline bounds reads and writes.
func (c *Conn) SetDeadline(deadline time.Time) error {
	c.reads.until(deadline)
	c.writes.until(deadline)
	return nil
}

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(deadline time.Time) error {
	c.reads.until(deadline)
	return nil
}

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(deadline time.Time) error {
	c.writes.until(deadline)
	return nil
}
