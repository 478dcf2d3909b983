//! Descriptors must arrive with the frame that announces them, and none may leak on any road.

use super::*;
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::protocol::frame::{FrameReader, append_frame};
use crate::shm::fork::tests::in_child;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{self, ControlMessage, MsgFlags};
use nix::sys::stat::fstat;
use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

#[test]
fn every_frame_gets_its_descriptors_however_the_stream_is_cut() {
    for room in [1, 2, 7, 8, 9, 64, 4096] {
        let (near, far) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..6).map(|n| file_with(&format!("file {n}"))).collect();
        let frames: [(&[u8], &[File]); 4] = [
            (b"two", &files[..2]),
            (b"none at all", &[]),
            (b"one", &files[2..3]),
            (b"three", &files[3..]),
        ];
        for (payload, files) in frames {
            send_frame(&near, payload, files);
        }
        drop(near);

        let mut reader = FrameReader::new(FRAME_DESCRIPTORS_MAX);
        let mut queue = VecDeque::new();
        let mut seen = Vec::new();
        loop {
            let space = reader.space(room);
            let room = space.len().min(room);
            let received = receive(far.as_fd(), &mut space[..room], &mut queue).unwrap();
            if received == 0 {
                break;
            }
            reader.advance(received);
            while let Some(frame) = reader.next_frame().unwrap() {
                let files = queue.drain(..usize::from(frame.descriptors)).map(text_of).collect();
                seen.push((frame.payload.to_vec(), files));
            }
        }
        let expected: Vec<(Vec<u8>, Vec<String>)> = frames
            .iter()
            .map(|(payload, files)| {
                let texts = files.iter().map(|file| text_of(file.try_clone().unwrap().into()));
                (payload.to_vec(), texts.collect())
            })
            .collect();
        assert_eq!(seen, expected, "receiving {room} bytes at a time");
        assert!(queue.is_empty());
    }
}

#[test]
fn received_descriptors_are_close_on_exec() {
    let (near, far) = UnixStream::pair().unwrap();
    send(near.as_fd(), b"x", &[file_with("").as_fd()]).unwrap();
    let mut queue = VecDeque::new();
    assert_eq!(receive(far.as_fd(), &mut [0; 8], &mut queue).unwrap(), 1);
    let flags = fcntl(&queue[0], FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
}

#[test]
fn a_non_blocking_socket_takes_a_part_and_then_nothing() {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let mut queue = VecDeque::new();
    let error = receive(far.as_fd(), &mut [0; 8], &mut queue).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    let bytes = vec![7; usize::try_from(FRAME_PAYLOAD_BYTES_MAX).unwrap()];
    let file = file_with("rides with the first part");
    let sent = send(near.as_fd(), &bytes, &[file.as_fd()]).unwrap();
    assert!(0 < sent && sent < bytes.len(), "{sent}");
    let error = send(near.as_fd(), &bytes, &[file.as_fd()]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    let mut came = 0;
    while came < sent {
        came += receive(far.as_fd(), &mut [0; 4096], &mut queue).unwrap();
        assert_eq!(queue.len(), 1, "with the first byte, and only there");
    }
    assert_eq!(came, sent);
}

#[test]
fn a_vanished_peer_is_an_error_and_then_the_end() {
    let (near, far) = UnixStream::pair().unwrap();
    // Unlike closing, this does not wait for a process that another test forks at this moment.
    near.shutdown(Shutdown::Both).unwrap();
    for files in [&[][..], &[file_with("").as_fd()]] {
        let error = send(far.as_fd(), b"x", files).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
    assert_eq!(receive(far.as_fd(), &mut [0; 8], &mut VecDeque::new()).unwrap(), 0);
}

#[test]
fn a_vanished_peer_does_not_kill_a_program_that_leaves_sigpipe_alone() {
    let (near, far) = UnixStream::pair().unwrap();
    near.shutdown(Shutdown::Both).unwrap();
    let file = file_with("");
    assert!(in_child(|| {
        // SAFETY: the child has one thread and installs no function of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        send(far.as_fd(), b"x", &[]).is_err() && send(far.as_fd(), b"x", &[file.as_fd()]).is_err()
    }));
}

#[test]
fn too_many_descriptors_in_one_message_are_an_error_and_closed() {
    let (near, far) = UnixStream::pair().unwrap();
    let (pipe, writers) = pipe_with_writers(usize::from(FRAME_DESCRIPTORS_MAX) + 1);
    send_unchecked(&near, &writers);
    drop(writers);
    let mut queue = VecDeque::new();
    let error = receive(far.as_fd(), &mut [0; 8], &mut queue).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(queue.is_empty());
    assert!(all_writers_closed(&pipe), "a descriptor has leaked");
}

#[test]
fn descriptors_that_belong_to_no_frame_do_not_pile_up() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut queue = VecDeque::new();
    let (pipe, writers) = pipe_with_writers(usize::from(FRAME_DESCRIPTORS_MAX));
    for _ in 0..2 {
        send_unchecked(&near, &writers);
        receive(far.as_fd(), &mut [0; 8], &mut queue).unwrap();
    }
    assert_eq!(queue.len(), QUEUE_MAX);
    send_unchecked(&near, &writers[..1]);
    drop(writers);
    let error = receive(far.as_fd(), &mut [0; 8], &mut queue).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(all_writers_closed(&pipe), "a descriptor has leaked");
}

#[test]
fn calls_that_cannot_mean_anything_are_refused() {
    let (near, far) = UnixStream::pair().unwrap();
    let file = file_with("");
    let too_many = vec![file.as_fd(); usize::from(FRAME_DESCRIPTORS_MAX) + 1];
    for result in [
        send(near.as_fd(), b"", &[file.as_fd()]),
        send(near.as_fd(), b"x", &too_many),
        receive(far.as_fd(), &mut [], &mut VecDeque::new()),
    ] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

/// As the client and the server do: the descriptors go with the first byte, whatever is left
/// goes without them.
fn send_frame(socket: &UnixStream, payload: &[u8], files: &[File]) {
    let mut bytes = Vec::new();
    let count = u16::try_from(files.len()).unwrap();
    append_frame(&mut bytes, count, |out| out.extend_from_slice(payload)).unwrap();
    let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    // A first part of three bytes, as if the socket had been nearly full.
    assert_eq!(send(socket.as_fd(), &bytes[..3], &descriptors).unwrap(), 3);
    assert_eq!(send(socket.as_fd(), &bytes[3..], &[]).unwrap(), bytes.len() - 3);
}

/// What a hostile peer does.
fn send_unchecked(socket: &UnixStream, descriptors: &[OwnedFd]) {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let bytes = [IoSlice::new(b"x")];
    socket::sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
}

/// A pipe that tells when all copies of its writing end are closed.
fn pipe_with_writers(count: usize) -> (io::PipeReader, Vec<OwnedFd>) {
    let (reader, writer) = io::pipe().unwrap();
    let writers = (0..count).map(|_| writer.try_clone().unwrap().into()).collect();
    (reader, writers)
}

/// Waits a little, because a process that another test forks has copies for a moment.
fn all_writers_closed(pipe: &io::PipeReader) -> bool {
    let milliseconds = 10_000_u16;
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    poll(&mut polled, milliseconds).unwrap() == 1
}

fn file_with(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn text_of(file: OwnedFd) -> String {
    let size = usize::try_from(fstat(&file).unwrap().st_size).unwrap();
    let mut bytes = vec![0; size];
    std::os::unix::fs::FileExt::read_exact_at(&File::from(file), &mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}
