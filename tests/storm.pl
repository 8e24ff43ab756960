# A storm of clients for scripts/storm and `scripts/vm storm`: all connect to port 8080 at once and ask for the upgrade. BETWEEN is a shell command for when all
# have knocked. Prints what became of them. With ROOM those that get in join it, which asks for its history, and stay for HOLD_SECS more without reading a byte.
# Perl, since every Debian has it; epoll by its numbers (x86-64), since select takes longer the more there are.
#
#   perl storm.pl COUNT TOKEN PATIENCE_SECS [BETWEEN [ROOM HOLD_SECS]]
use strict;
use warnings;
use Socket;
use Errno qw(EINPROGRESS);
use Fcntl;
use Time::HiRes qw(time);

my ($count, $token, $patience, $between, $room, $hold) = @ARGV;
my $server = pack_sockaddr_in(8080, inet_aton('127.0.0.1'));
my ($EPOLL_WAIT, $EPOLL_CTL, $EPOLL_CREATE) = (232, 233, 291);
my ($ADD, $DEL, $MOD, $IN, $OUT) = (1, 2, 3, 1, 4);
my $BATCH = 512;
my $epoll = syscall $EPOLL_CREATE, 0;
$| = 1;

my (%socket, %asked);
my %told = (upgraded => 0, refused => 0, reset => 0);
my $slowest = 0;
for my $n (1 .. $count) {
  socket(my $socket, PF_INET, SOCK_STREAM | O_NONBLOCK, 0) or die "socket $n: $!";
  connect($socket, $server) or $! == EINPROGRESS or die "connect $n: $!";
  $socket{fileno $socket} = $socket;
}
my $began = time;
system $between if $between;
watch($ADD, $_, $OUT) for keys %socket;

while (%socket && time - $began < $patience) {
  my $events = "\0" x (12 * $BATCH);
  my $ready = syscall $EPOLL_WAIT, $epoll, $events, $BATCH, 250;
  act(unpack 'x4L', substr $events, 12 * $_, 12) for 0 .. $ready - 1;
}
printf "%d upgraded, %d refused, %d reset, %d unanswered; the last one in after %.1f s\n", @told{qw(upgraded refused reset)}, scalar keys %socket, $slowest;
sleep $hold if $hold;

sub watch {
  my ($what, $at, $events) = @_;
  my $event = pack 'LLL', $events, $at, 0;
  syscall($EPOLL_CTL, $epoll, $what, $at, $event) == 0 or die "epoll_ctl: $!";
}

# It can be written to, and so is connected or refused; or the answer is there.
sub act {
  my ($at) = @_;
  my $socket = $socket{$at};
  if ($asked{$at}) {
    my $got = sysread $socket, my $head, 64;
    return done($at, !$got ? 'reset' : $head =~ m{^HTTP/1.1 101} ? 'upgraded' : 'refused');
  }
  return done($at, 'reset') if unpack 'i', getsockopt($socket, SOL_SOCKET, SO_ERROR);
  syswrite $socket, "GET /ws?token=$token HTTP/1.1\r\nHost: storm\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
  $asked{$at} = 1;
  watch($MOD, $at, $IN);
}

# Those that are in stay open until all are told of.
my @in;
sub done {
  my ($at, $what) = @_;
  $told{$what}++;
  watch($DEL, $at, 0);
  my $socket = delete $socket{$at};
  return if $what ne 'upgraded';
  push @in, $socket;
  join_room($socket) if $room;
  $slowest = time - $began;
}

# A text frame, masked with zeros.
sub join_room {
  my ($socket) = @_;
  my $text = qq({"type":"join_room","roomId":"$room"});
  syswrite $socket, pack('CCN', 0x81, 0x80 | length $text, 0) . $text;
}
