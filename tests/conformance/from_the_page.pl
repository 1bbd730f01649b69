#!/usr/bin/perl
# A worker that was written from docs/protocol.md alone.
use strict;
use warnings;
use IO::Socket::UNIX;
use JSON::PP;

# Where a worker finds its parts: an argument first, and only before `--`.
my ($path, $key);
for my $at (0 .. $#ARGV) {
    last if $ARGV[$at] eq '--';
    $path //= $1 if $ARGV[$at] =~ /^--control=(.*)/s;
    $path //= $ARGV[$at + 1] if $ARGV[$at] eq '--control';
}
if (defined $path) {
    $key = $ENV{PIPEWRIGHT_CONTROL_KEY};
} elsif (defined $ENV{PIPEWRIGHT_CONTROL}) {
    ($path, $key) = $ENV{PIPEWRIGHT_CONTROL} =~ /^(.*)\?(.*)$/s;    # split at the last `?`
}
die "this is a worker: its parent passes --control or PIPEWRIGHT_CONTROL\n" unless defined $path && defined $key;
delete @ENV{qw(PIPEWRIGHT_MESSAGES PIPEWRIGHT_CONTROL PIPEWRIGHT_CONTROL_KEY)};

my $json = JSON::PP->new->utf8->allow_nonref->canonical;
my $control = IO::Socket::UNIX->new(Type => SOCK_STREAM, Peer => $path) or die "cannot connect to the parent: $!\n";
$SIG{PIPE} = 'IGNORE';

sub send_message {
    my %message = (jsonrpc => '2.0', @_);
    my $line = $json->encode(\%message) . "\n";
    while (length $line) {
        my $sent = syswrite($control, $line) // exit 1;    # the parent is gone
        substr($line, 0, $sent, '');
    }
}

sub answer { my ($id, $result) = @_; send_message(id => $id, result => $result) }
sub fail { my ($id, $code, $text) = @_; send_message(id => $id, error => { code => $code, message => $text }) }

my %methods = (
    ping => sub { undef },
    add => sub {
        my ($params) = @_;
        my $sum = 0;
        die "invalid params\n" unless ref $params eq 'ARRAY';
        for (@$params) {
            die "invalid params\n" if ref $_ || !defined $_ || !/^-?\d+(\.\d+)?$/;
            $sum += $_;
        }
        return $sum;
    },
    echo => sub { $_[0] },
);

send_message(id => 0, method => 'hello', params => { key => $key, version => 1 });
while (my $line = <$control>) {    # until the parent ends the connection
    my $message = eval { $json->decode($line) };
    if (ref $message ne 'HASH') {
        fail(undef, -32700, 'not a JSON object');
        next;
    }
    my ($id, $method) = @$message{qw(id method)};
    if (!defined $method) {        # the answer to the hello, the only call of this worker
        die "the parent refused this worker: $message->{error}{message}\n" if $message->{error} && ($id // 0) eq 0;
    } elsif (!exists $message->{id}) {
        exit 0 if $method eq 'shutdown';
    } elsif (my $code = $methods{$method}) {
        my $result = eval { $code->($message->{params}) };
        if ($@) { fail($id, $@ eq "invalid params\n" ? -32602 : -32603, $@) } else { answer($id, $result) }
    } else {
        fail($id, -32601, 'method not found');
    }
}
exit 0;
